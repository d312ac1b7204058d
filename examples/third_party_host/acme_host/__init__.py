"""A third party's host for bvllm_adapters."""

from acme_host.host import HOST as HOST
