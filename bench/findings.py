"""What a run of the benchmarks has found so far."""

from dataclasses import dataclass, field

from schema import Check, DeviceState, EqualWork, Measurement, Skipped, Training


@dataclass
class Findings:
    """Lists that grow while measuring; fields of `Results`."""

    checks: list[Check] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    equal_work: list[EqualWork] = field(default_factory=list)
    training: list[Training] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    device_states: list[DeviceState] = field(default_factory=list)

    def skip(self, kernel: str, contestant: str, problem: Exception) -> None:
        """Notes why a contestant could not run."""
        missing = "missing: " if isinstance(problem, ImportError) else ""
        reason = str(problem).splitlines()[0] if str(problem) else repr(problem)
        self.skipped.append(Skipped(kernel=kernel, contestant=contestant, reason=missing + reason))
