"""Prints the folder of tasks: `--include_path "$(python -m bvllm_lmms_eval)"`."""

from bvllm_lmms_eval import TASKS

if __name__ == "__main__":
    print(TASKS)
