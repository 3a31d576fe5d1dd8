"""Whether an engine filled by netloader is the engine it would be from disk.

    python -m netloader.vllm_plugin.inspect.parity MODEL [--dtype bfloat16] ...

Engine A loads MODEL from disk and serves it; engine B has a copy of the folder without the weight
files and must fill itself from A. All that they hold and all that they answer is compared. In the
end B's weights are set to zero: if the comparison does not notice, the verdict is BLIND.

vLLM is imported only inside an engine's own process.
"""
