"""The guard in vLLM's engine core: it refuses every request while a rank has no weights.

`front` answers callers with a sentence, in the processes that it knows. This guard stands behind
every front end, and in every replica. An engine believes only its ranks: it asks them once, at the
end of its start, and reads their answers to each later call. It imports nothing for an instance
that cannot be on standby.
"""

from typing import Any, Final

from netloader.vllm_plugin.config.load_format import may_wait
from netloader.vllm_plugin.patches.once import wrap_once

MODULE: Final = "vllm.v1.engine.core"
WRAPPED: Final = ("_initialize_kv_caches", "collective_rpc", "preprocess_add_request")
STARTS, CALLS, TAKES = WRAPPED
"""What an engine does last with its ranks before it serves; how it calls a method of each; what it
does first with a request, where an error ends that request alone."""
STANDING: Final = "netloader_standing"
REPORTS: Final = frozenset({STANDING, "netloader_fill"})
"""The methods of the ranks that say whether these have weights."""
LACKS: Final = "_netloader_lacks_weights"
"""The attribute of an engine that is true until all its ranks have said that they have them."""


def install(engine_class: Any) -> None:
    """Guard vLLM's engines; a second call changes nothing, nor one with another kind of class."""
    if all(hasattr(engine_class, name) for name in WRAPPED):
        wrap_once(engine_class, STARTS, _asking)
        wrap_once(engine_class, CALLS, _learning)
        wrap_once(engine_class, TAKES, _refusing)


def _asking(start: Any) -> Any:
    def started(engine: Any, *args: Any, **kwargs: Any) -> Any:
        result = start(engine, *args, **kwargs)
        if may_wait(engine.vllm_config.load_config):
            vars(engine)[LACKS] = True
            engine.collective_rpc(STANDING)
        return result

    return started


def _learning(call: Any) -> Any:
    def learned(engine: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        reports = call(engine, method, *args, **kwargs)
        if vars(engine).get(LACKS) and method in REPORTS:
            filled = bool(reports) and all(each["filled"] for each in reports)
            vars(engine)[LACKS] = not filled
        return reports

    return learned


def _refusing(take: Any) -> Any:
    """Wrap what vLLM calls from another thread than the one that learns."""

    def taken(engine: Any, *args: Any, **kwargs: Any) -> Any:
        if vars(engine).get(LACKS):
            from netloader.vllm_plugin.front.instance import WAITS
            from netloader.vllm_plugin.serve.standing import StandbyError

            raise StandbyError(WAITS)
        return take(engine, *args, **kwargs)

    return taken
