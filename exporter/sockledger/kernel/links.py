"""What is attached: each link taken over from the pins, or made; looked after while the daemon runs."""

import logging
from collections.abc import Callable, Mapping

from sockledger.errors import UserError
from sockledger.kernel.libbpf import Link, Program
from sockledger.kernel.objects import advice
from sockledger.kernel.pins import Pins

logger = logging.getLogger(__name__)

# The program at the root's ingress, which every version has under this name: see kernel/attachments.py.
HOT_PATH = "sl_receive"


class Links:
    """Links by name, pinned under it if there are pins."""

    def __init__(self, pins: Pins | None) -> None:
        self._pins = pins
        self._held: dict[str, Link] = {}
        self._attach: dict[str, Callable[[], Link]] = {}
        self._new: set[str] = set()
        self._refused: set[str] = set()
        self._again: set[str] = set()  # attached again: what is pinned is detached
        self.expected: set[str] = set()  # of these it is said if they have to be attached anew

    def add(self, name: str, attach: Callable[[], Link], go_on: Callable[[Link], bool]) -> None:
        """Go on with the pinned link if *go_on* can, else *attach* and pin; UserError if that fails."""
        link = self._pinned(name)
        if not link or not go_on(link):
            was_attached = name in self.expected or link is not None
            if link:
                link.destroy()
                self._unpin(name)
            link = attach()
            try:
                if self._pins:
                    self._pins.keep(link.fd, self._pins.link(name))
            except (UserError, OSError):
                link.destroy()
                raise
            self._new.add(name)
            if was_attached:
                logger.warning("attached anew, it was not any more: counts are missing", extra={"link": name})
        self._held[name] = link
        self._attach[name] = attach

    def _pinned(self, name: str) -> Link | None:
        return self._pins.open_link(name) if self._pins else None

    def _unpin(self, name: str) -> None:
        if self._pins:
            self._pins.remove_link(name)

    def remove(self, name: str) -> None:
        """Detach, pinned or not. What cannot be unpinned the next start unpins; a line in the log says so."""
        self._held.pop(name).destroy()
        self._attach.pop(name)
        self._new.discard(name)
        self._refused.discard(name)
        self._again.discard(name)
        self._unpin_if_possible(name)

    def _unpin_if_possible(self, name: str) -> None:
        try:
            self._unpin(name)
        except OSError as error:
            logger.warning("stays pinned", extra={"link": name, "error": str(error)})

    def remove_others(self, but: tuple[str, ...] = ()) -> None:
        """Detach what is pinned and not held, and whose name begins with none of *but*."""
        pins = self._pins.all("links") | self._pins.all("hooks") if self._pins else set()
        for name in {path.name for path in pins} - self._held.keys():
            if not name.startswith(but):
                self._unpin_if_possible(name)

    @property
    def new(self) -> set[str]:
        """The names of links that were not attached before."""
        return set(self._new)

    def undo(self) -> None:
        """Detach what was not attached before."""
        for name in self.new:
            self.remove(name)

    @property
    def held(self) -> Mapping[str, Link]:
        """All links by name."""
        return self._held

    def detached(self) -> set[str]:
        """Return the names of links whose program the kernel does not run any more."""
        return {name for name, link in self._held.items() if not link.attached()}

    def attach_again(self) -> None:
        """Attach again what was detached, with a line in the log for each."""
        for name in self.detached():
            try:
                link = self._attach[name]()
            except FileNotFoundError:
                continue  # a cgroup that is gone
            except (UserError, OSError) as error:
                if name not in self._refused:
                    logger.error("attaching again failed", extra={"link": name, "error": str(error)})  # noqa: TRY400
                self._refused.add(name)
                continue
            self._refused.discard(name)
            self._held[name].destroy()
            self._held[name] = link
            self._again.add(name)
            logger.warning("attached again", extra={"link": name})

    def pin_again(self, pins: Pins) -> None:
        """Pin again what was unpinned, or attached again."""
        for name, link in self._held.items():
            if name in self._again:
                # not pinned under another name first: who is killed here leaves it to nobody
                pins.link(name).unlink(missing_ok=True)
            pins.keep(link.fd, pins.link(name))
            self._again.discard(name)

    def close(self) -> None:
        """Let go of all: what is not pinned is detached."""
        while self._held:
            self._held.popitem()[1].destroy()
        self._new.clear()


def attach_cgroup(program: Program, cgroup_fd: int, path: str) -> Link:
    """Attach a program to a cgroup; UserError with the likely cause if the kernel refuses.

    FileNotFoundError if the cgroup is gone.
    """
    try:
        return program.attach_cgroup(cgroup_fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        if not isinstance(error, PermissionError):
            reason = f"{error.strerror}: {advice(error)}"
            raise UserError(f"{path}: attaching program {program.name} failed: {reason}") from None
        raise UserError(
            f"{path}: the cgroup refuses program {program.name}: another program is attached there, or above "
            "it, exclusively (no BPF_F_ALLOW_MULTI), or CAP_NET_ADMIN is missing: see bpftool cgroup show"
        ) from None


def replace_program(program: Program, cgroup_id: int, link: Link) -> bool:
    """Let the link run *program*, if it is still at this cgroup."""
    if link.cgroup_id != cgroup_id:
        return False
    link.update(program)
    return True
