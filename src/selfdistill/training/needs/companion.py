"""A module that the method makes, trained beside the network and then left behind; what it says is `Step.companion`."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from selfdistill.models.sections import seeded
from selfdistill.seeds import derived_seed
from selfdistill.training.method import Peer
from selfdistill.training.needs import Need, Seen

if TYPE_CHECKING:
    from selfdistill.training.engine import Run


class Companion(Need):
    def begin_phase(self, run: "Run", restarted: bool) -> None:
        if not restarted:
            return
        number, _, _ = run.phase()
        with seeded(derived_seed(run.seed, f"companion/{number}")):
            self.module = self.method.companion(
                run.dry_run(run.network),
                run.dry_run(run.teacher) if run.teacher is not None else None,
                lambda: run.fresh_network(f"weights of a peer/{number}"),
            )
        if self.module is not None:
            self.module.to(run.device)

    def given(self, run: "Run", seen: Seen) -> dict[str, Any]:
        return {"companion": seen.beside.get("companion")}

    def members(self) -> dict[str, dict[str, Tensor]]:
        """Another network of the same form, if it is one, is kept."""
        return {"peer": self.module.network.state_dict()} if isinstance(self.module, Peer) else {}

    def saved(self, run: "Run") -> dict[str, Tensor]:
        return self.module.state_dict() if self.module is not None else {}

    def restore(self, run: "Run", tensors: dict[str, Tensor]) -> None:
        if self.module is not None:
            self.module.load_state_dict(tensors)
