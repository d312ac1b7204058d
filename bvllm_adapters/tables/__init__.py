"""Tables that others wrote, read with errors that name the line; files of results that grow a row
at a time and outlive whoever writes them. It knows no model and no video.
"""
