"""A server of a dry run's ranks whose jobs may name a fault, which is planted in the process of that rank alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from pretrain.dryrun import serve


def only_a_step(passes: Any) -> None:
    """Of all passes, a start and a step: that is where faults are planted."""
    from pretrain.dryrun import store

    passes._folder.mkdir(parents=True)
    if parent := passes._curriculum.parent(passes._stage):
        store.finish(passes._curriculum, parent)
    engine, state = passes._pass("start", passes._start)
    with passes._run(engine, state) as run:
        passes._pass("step", lambda: passes._turn(run))


def before_each_step(fault: Callable[[Any], None]) -> None:
    from pretrain.engine.engine import Engine

    step = Engine.train_step

    def with_fault(engine: Engine, *given: Any, **named: Any) -> Any:
        fault(engine)
        return step(engine, *given, **named)

    Engine.train_step = with_fault  # type: ignore[method-assign]


def cpu_tensor() -> None:
    """A collective is given a tensor on the host."""
    before_each_step(lambda engine: dist.all_reduce(torch.zeros(2)))


def item() -> None:
    """The host asks for a value in a step."""
    before_each_step(lambda engine: engine.parameters[0][1].sum().item())


def unlike() -> None:
    """Tensors of two devices meet."""
    before_each_step(lambda engine: engine.parameters[0][1].sum() + torch.zeros(2))


def other_shape() -> None:
    """The first pipeline rank sends one row less than is expected of it."""
    from megatron.core.pipeline_parallel import p2p_communication

    communicate = p2p_communication.P2PCommunicator._communicate

    def shorter(self: Any, *, tensor_send_next: Any, **how: Any) -> Any:
        if tensor_send_next is not None and not dist.get_rank():
            tensor_send_next = tensor_send_next[1:].contiguous()
        return communicate(self, tensor_send_next=tensor_send_next, **how)

    p2p_communication.P2PCommunicator._communicate = shorter


def other_order() -> None:
    """Two collectives change places on one of two pipeline ranks."""

    def both(engine: Any) -> None:
        values = torch.zeros(3, device=engine.device), torch.zeros(5, device=engine.device)
        for value in reversed(values) if not engine.passes.last else values:
            dist.all_reduce(value)

    before_each_step(both)


def device_view() -> None:
    """A plan is evaluated straight into the partition on the device."""
    from pretrain.engine.staging import Staging

    Staging.put = lambda self, target, make: make(out=target)  # type: ignore[assignment,method-assign]


FAULTS = {fault.__name__: fault for fault in (cpu_tensor, item, unlike, other_shape, other_order, device_view)}


def main() -> None:
    answer = serve.answer

    def with_fault(job: dict[str, Any]) -> dict[str, Any]:
        if name := job.pop("fault", None):
            from pretrain.dryrun.passes import Passes

            Passes._all = only_a_step  # type: ignore[method-assign]
            FAULTS[name]()
        return answer(job)

    serve.answer = with_fault
    serve.serve()


if __name__ == "__main__":
    main()
