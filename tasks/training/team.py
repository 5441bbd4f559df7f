"""Which ranks a training has, and which of them run on this machine.

Reads the recipe, the accelerators of this machine, and for several nodes the settings `MILLRACE_NODE_RANK` and
`MILLRACE_MASTER_ADDRESS`. Writes nothing. Fails with `RecipeError` when the machine was given another number of
GPUs than the recipe asks for, or one that does not divide a step, and with `SettingsError` when a node does not
know its place.
"""

import subprocess
import sys
from dataclasses import dataclass

from tasks.errors import RecipeError, SettingsError
from tasks.settings import Settings
from tasks.training.recipes import Recipe, require_packages

_PORT = 29500  # of node 0, where the ranks of several nodes meet


@dataclass(frozen=True)
class Team:
    """The ranks of one training: `per_node` on each of `nodes`; this is number `node`."""

    per_node: int
    nodes: int = 1
    node: int = 0
    master: str = "127.0.0.1"
    port: int | None = None  # None: any free one, for a single node

    @property
    def world(self) -> int:
        """The number of ranks on all nodes."""
        return self.per_node * self.nodes

    @property
    def here(self) -> range:
        """The ranks of this node."""
        return range(self.node * self.per_node, (self.node + 1) * self.per_node)


def gather(recipe: Recipe, settings: Settings) -> Team:
    """Return the team of this training as seen from this machine. Raises RecipeError, SettingsError."""
    require_packages(recipe)
    nodes = recipe.distribution.nodes
    per_node = _ranks_here(recipe)
    if nodes == 1:
        if settings.node_rank is not None:
            raise RecipeError(
                f"expected one machine for this recipe (distribution.nodes 1), found that this is node {settings.node_rank} of "
                "several. Next: start fine_tune with nodes 1, or raise distribution.nodes in the recipe."
            )
        team = Team(per_node)
    else:
        if settings.node_rank is None or settings.master_address is None or settings.node_rank >= nodes:
            raise SettingsError(
                f"expected MILLRACE_NODE_RANK (0 to {nodes - 1}) and MILLRACE_MASTER_ADDRESS for a recipe with {nodes} nodes, "
                f"found {settings.node_rank} and {settings.master_address}. Next: start it as a Job (launcher kubernetes), "
                "or set distribution.nodes to 1."
            )
        team = Team(per_node, nodes, settings.node_rank, settings.master_address, _PORT)
    recipe.accumulation(team.world)  # refuses a number of ranks that does not divide a step
    return team


def _ranks_here(recipe: Recipe) -> int:
    wanted = recipe.distribution.ranks
    if recipe.distribution.accelerator == "cpu":
        assert isinstance(wanted, int)
        return wanted
    present = len(gpus_here())
    if present < 1 or wanted not in {"all", present}:
        raise RecipeError(
            f"expected {wanted} GPUs on this machine for this recipe (distribution.ranks), found {present}. "
            "Next: ask for as many (parameter gpus), correct the recipe, or hide the others with CUDA_VISIBLE_DEVICES."
        )
    return present


def gpus_here() -> list[str]:
    """Return the names of the GPUs that a training would use here."""
    # Asked in a child: importing torch here would hold memory for as long as the training runs.
    named = "import torch; print(*map(torch.cuda.get_device_name, range(torch.cuda.device_count())), sep='\\n')"
    found = subprocess.run([sys.executable, "-c", named], check=True, capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if line]
