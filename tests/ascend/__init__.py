"""The real vllm-ascend with the real torch_npu, on a simulated CANN runtime. See README.md."""
