"""From a file, a folder, an image or an array to frames with their times.

It knows no model. It may import the standard library, NumPy, Pillow, PyAV, torch for tensors that
come as videos, and `bvllm_adapters.checks`.
"""

from bvllm_adapters.video.frames import VideoError as VideoError
from bvllm_adapters.video.frames import VideoWarning as VideoWarning
from bvllm_adapters.video.read import Video as Video
from bvllm_adapters.video.read import open_source as open_source
from bvllm_adapters.video.read import read_video as read_video
