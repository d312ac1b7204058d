"""Files that the library reads; NOTICE.md says whose they are."""
