"""vLLM's engine takes no request while a rank has no weights, whoever hands it one."""

import queue
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from vllm.config.load import LoadConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType, FinishReason
from vllm.v1.engine.core import EngineCore, EngineCoreProc
from vllm.v1.serial_utils import MsgpackEncoder

from netloader.vllm_plugin.patches import core
from netloader.vllm_plugin.serve.standing import StandbyError

STANDBY = {"STANDBY": True}


class Executor:
    """Has two ranks, and notes what they are asked."""

    def __init__(self) -> None:
        self.filled = [False, False]
        self.asked: list[str] = []

    def collective_rpc(self, method: str, *_: Any) -> list[Any]:
        self.asked.append(method)
        if not method.startswith("netloader_"):
            return [None, None]
        return [{"rank": rank, "filled": filled} for rank, filled in enumerate(self.filled)]


def kind_of(engine: type) -> Any:
    """A class of engines whose start is over at once, guarded."""
    names = {"_initialize_kv_caches": lambda engine, config: config}
    kind = type("Guarded", (engine,), names)
    core.install(kind)
    return kind


def engine_of(extra: dict[str, Any], engine: type = EngineCore) -> Any:
    """An engine that has started."""
    kind = kind_of(engine)
    made = kind.__new__(kind)
    load = LoadConfig(load_format="netloader", model_loader_extra_config=extra)
    made.vllm_config = SimpleNamespace(load_config=load)
    made.model_executor = Executor()
    made.mm_receiver_cache = made.request_block_hasher = None
    assert made._initialize_kv_caches("caches") == "caches"
    return made


def request(name: str) -> EngineCoreRequest:
    given = {"sampling_params": SamplingParams(max_tokens=1), "pooling_params": None}
    fields = {"request_id": name, "prompt_token_ids": [1], "mm_features": None, "arrival_time": 0.0}
    rest = {"lora_request": None, "cache_salt": None, "data_parallel_rank": None}
    return EngineCoreRequest(**fields, **given, **rest)


def takes(engine: Any) -> bool:
    try:
        taken, _ = engine.preprocess_add_request(request("a"))
    except StandbyError:
        return False
    return bool(taken.request_id == "a")


@pytest.mark.parametrize("question", ["netloader_fill", "netloader_standing"])
def test_a_request_is_refused_until_every_rank_has_said_that_it_has_weights(question: str) -> None:
    engine = engine_of(STANDBY)
    with pytest.raises(StandbyError, match="this instance is on standby"):
        engine.preprocess_add_request(request("a"))
    engine.model_executor.filled = [True, False]
    engine.collective_rpc(question)
    assert not takes(engine)
    engine.model_executor.filled = [True, True]
    engine.collective_rpc("reload_weights")
    assert not takes(engine), "no rank has said so"
    assert engine.collective_rpc(question) == [{"rank": rank, "filled": True} for rank in (0, 1)]
    assert takes(engine)
    engine.model_executor.filled = [False, False]
    engine.collective_rpc(question)
    assert takes(engine), "weights stay"


def test_no_answer_of_the_ranks_is_no_leave_to_take_requests() -> None:
    engine = engine_of(STANDBY)
    engine.model_executor.filled = []
    engine.collective_rpc("netloader_standing")
    assert not takes(engine)


def test_other_instances_are_not_even_asked() -> None:
    engine = engine_of({"LISTEN_PORT": 19374})
    assert takes(engine)
    assert engine.model_executor.asked == []


def test_an_instance_whose_file_might_say_standby_is_asked_once() -> None:
    engine = engine_of({"CONFIG_FILE": "/settings.json"})
    assert engine.model_executor.asked == ["netloader_standing"]
    assert not takes(engine)


def test_an_engine_of_vllm_has_what_is_wrapped() -> None:
    """Where a release renames one of these, `install` guards nothing, and says nothing."""
    assert all(hasattr(EngineCore, name) for name in core.WRAPPED)


def test_a_class_without_what_is_wrapped_is_left_alone() -> None:
    core.install(type("Other", (), {"collective_rpc": print}))


def test_a_refused_request_ends_alone_and_the_next_one_is_taken() -> None:
    """With vLLM's own thread that takes requests of other processes."""
    engine = engine_of(STANDBY, EngineCoreProc)
    engine.tensor_ipc_receiver = engine.frontend_stats_publish_address = None
    engine.vllm_config.model_config = SimpleNamespace(max_model_len=8, dtype="torch.bfloat16")
    engine.vllm_config.cache_config = SimpleNamespace(num_gpu_blocks=1, block_size=16)
    engine._make_ready_response = dict  # vLLM 0.23 makes it of the above
    engine.input_queue, engine.output_queue = queue.Queue(), queue.Queue()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")
        at = ([f"tcp://127.0.0.1:{port}"], None, b"engine", threading.Event())
        threading.Thread(target=engine.process_input_sockets, args=at, daemon=True).start()
        assert router.poll(30_000)
        router.recv_multipart()

        def send(name: str) -> None:
            kind = EngineCoreRequestType.ADD.value
            router.send_multipart([b"engine", kind, *MsgpackEncoder().encode(request(name))])

        send("early")
        client, outputs = engine.output_queue.get(timeout=30)
        (output,) = outputs.outputs
        assert (client, output.request_id, output.finish_reason) == (0, "early", FinishReason.ERROR)

        engine.model_executor.filled = [True, True]
        engine.collective_rpc("netloader_fill")
        send("late")
        _, (taken, _) = engine.input_queue.get(timeout=30)
        assert taken.request_id == "late"
    assert engine.output_queue.empty()
