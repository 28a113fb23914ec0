"""The hooks on the user's optimizer: the one mechanism behind all three doors.

Traps measured on real loops (each is a test): torch copies bound methods with everything they
hold, so hooks are objects that copy and pickle to nothing; post hooks do not run when step()
raises; a subclass whose step() calls super().step() fires them twice; gradients appear inside
step(closure), after the pre hook.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from torch_gfshadow.passing import Passing

StepFunction = Callable[[], None]
_compiler: Callable[[], Any] = torch._C._dynamo.eval_frame.get_eval_frame_callback
"""What sees every frame that is entered; ``None`` outside of compiled functions."""


class StepHooks:
    """Calls ``before`` and ``after`` once per step that the optimizer really takes.

    Args:
        before: Called when the gradients of the step are there, before it moves anything.
        after: Called after the step, unless it was skipped.
        skips: Says whether the step about to be taken changes nothing.
        fail: Called with an exception of any of the above; training never sees it unless
            ``fail`` raises.
        idle: Says, at little cost, whether the step about to be taken needs nothing but
            ``count`` after it. If so none of the others is called.
        count: Called instead of ``after`` then.
        passing: Returns what to call at the steps to come as long as they pass: ``idle`` and
            ``count`` in fewer calls.
    """

    def __init__(
        self,
        before: StepFunction,
        after: StepFunction,
        skips: Callable[[], bool],
        fail: Callable[[BaseException], None],
        *,
        idle: Callable[[], bool] = lambda: False,
        count: StepFunction = lambda: None,
        passing: Callable[[], Passing | None] = lambda: None,
    ) -> None:
        self._before, self._after, self._skips, self._fail = before, after, skips, fail
        self._idle, self._count, self._passing = idle, count, passing
        self._interrupt: Callable[[], bool] = bool
        self._depth = 0
        self._counts = False
        self._skipped = False
        self._calling = False
        self._hooks: list[Hook] = []
        self._handles: list[Any] = []

    def install(self, optimizer: torch.optim.Optimizer, loaded: StepFunction) -> None:
        """Register on ``optimizer``; ``loaded`` is called after its state was loaded."""
        pre, post = Hook(self._pre), Hook(self._post)
        load = Hook(lambda _: self._guard(loaded))
        self._hooks = [pre, post, load]
        self._handles = [
            optimizer.register_step_pre_hook(pre),
            optimizer.register_step_post_hook(post),
            optimizer.register_load_state_dict_post_hook(load),
        ]

    def remove(self) -> None:
        """Take the hooks off again; from inside one of them, leave empty ones behind.

        torch is then walking the table of hooks, and would raise if it changed.
        """
        for hook in self._hooks:
            hook.clear()
        self._hooks = []
        if not self._calling:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def _pre(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._pass_no_more()
        if not (self._depth or kwargs) and len(args) == 1:
            self._depth = 1
            self._begin()
            return None
        frames = _frames_of(optimizer) if self._depth else 1
        # Anything beyond the frames is from a step that raised.
        self._depth = max(frames, 1)
        if frames > 1:  # super().step() inside a subclass's step(): one step, not two
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._begin()
            return None
        wrapped = self._after_closure(closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    def _post(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._pass_no_more()
        self._depth -= 1
        if self._depth or self._skipped:
            return
        if self._counts:
            self._calling = True
            try:
                self._count()
            except Exception as error:
                self._fail(error)
            finally:
                self._calling = False
        else:
            self._guard(self._after)
        self._let_pass()

    def _let_pass(self) -> None:
        """Have the steps to come call as little as they may."""
        found = self._passing()
        if found is not None and self._hooks:
            self._interrupt = found.interrupt
            self._hooks[0].first, self._hooks[1].first = found.before, found.after

    def _pass_no_more(self) -> None:
        """Go on as if the step under way, if it passed, had been looked at."""
        if self._interrupt():
            self._depth, self._counts, self._skipped = 1, True, False
        self._interrupt = bool
        for hook in self._hooks:
            hook.first = None

    def _after_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        first = True

        def wrapped() -> Any:
            nonlocal first
            out = closure()
            if first:
                first = False
                self._begin()
            return out

        return wrapped

    def _begin(self) -> None:
        self._skipped = True
        self._counts = False
        self._calling = True
        try:
            self._counts = self._idle()
        except Exception as error:
            self._fail(error)
            return
        finally:
            self._calling = False
        if self._counts:
            self._skipped = False
        else:
            self._guard(self._look)

    def _look(self) -> None:
        self._skipped = self._skips()
        if not self._skipped:
            self._before()

    def _guard(self, function: StepFunction) -> None:
        self._calling = True
        try:
            # our tensors must be neither inference tensors nor part of anybody's graph
            if torch.is_inference_mode_enabled():
                with torch.inference_mode(False), torch.no_grad():
                    function()
            else:
                with torch.no_grad():
                    function()
        except Exception as error:
            self._fail(error)
        finally:
            self._calling = False


class Hook:
    """A callable that leaves nothing of itself in copies and pickles of the optimizer.

    torch.compile does not trace it, nor what it calls.

    Attributes:
        first: Called first, if there is one; where it returns true the function is not called.
    """

    __slots__ = "_apart", "_function", "first"

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self._function = function
        self._apart: Callable[..., Any] | None = None
        self.first: Callable[..., bool] | None = None

    def __call__(self, *args: Any) -> Any:
        """Call the function, if it was not cleared."""
        if _compiler() is not None:
            return self._called_apart(args)
        first = self.first
        if first is not None and first(*args):
            return None
        return self._function(*args) if self._function is not None else None

    # as torch.compiler.disable marks its wrappers: they take as long as all we do when nothing
    # is due, and are needed only where a compiler is at work
    __call__._torchdynamo_disable = True  # type: ignore[attr-defined]
    __call__._torchdynamo_disable_msg = None  # type: ignore[attr-defined]

    def _called_apart(self, args: tuple[Any, ...]) -> Any:
        if self._function is None:
            return None
        if self._apart is None:
            disable: Any = torch.compiler.disable
            self._apart = disable(self._called)
        return self._apart(*args)

    def _called(self, *args: Any) -> Any:
        if self.first is not None and self.first(*args):
            return None
        function = self._function
        return function(*args) if function is not None else None

    def clear(self) -> None:
        """Do nothing from now on, and hold nothing."""
        self._function = self._apart = self.first = None

    def __deepcopy__(self, memo: Any) -> Hook:
        return Hook(None)

    def __reduce__(self) -> tuple[type[Hook], tuple[None]]:
        return Hook, (None,)


def _frames_of(optimizer: torch.optim.Optimizer) -> int:
    """Count the frames of torch's step wrapper for this optimizer that are on the stack."""
    count, frame = 0, sys._getframe()
    while frame is not None:
        if frame.f_code is _WRAPPER_CODE and frame.f_locals.get("self") is optimizer:
            count += 1
        frame = frame.f_back  # type: ignore[assignment]
    return count


def _wrapper_code() -> Any:
    # the code object all wrapped step() methods share; a test pins that torch still wraps so
    return torch.optim.Optimizer.profile_hook_step(lambda self: None).__code__


_WRAPPER_CODE = _wrapper_code()
