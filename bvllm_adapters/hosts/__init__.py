"""The models that are served: the protocol, finding a host, wrapping, adapters, splicing.

It may import the BalancedTokenizer and what is below it, and weights. An integration is never
imported here but by its entry point, when a model of its class comes along.
"""

from bvllm_adapters.hosts.adapter import push_adapter as push_adapter
from bvllm_adapters.hosts.adapter import save_adapter as save_adapter
from bvllm_adapters.hosts.find import find_host as find_host
from bvllm_adapters.hosts.find import host_of as host_of
from bvllm_adapters.hosts.find import list_hosts as list_hosts
from bvllm_adapters.hosts.host import Host as Host
from bvllm_adapters.hosts.host import HostError as HostError
from bvllm_adapters.hosts.load import load as load
from bvllm_adapters.hosts.wrap import merge_lora as merge_lora
from bvllm_adapters.hosts.wrap import unwrap as unwrap
from bvllm_adapters.hosts.wrap import wrap as wrap
