"""As in vllm-ascend."""
