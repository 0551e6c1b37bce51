"""Everything that ``hip submit`` can be told beside the keys of the verb that it sends."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.cluster.kuberay_options import KubeRayOptions
from pipeline.cluster.submit_secrets import check_environment
from pipeline.errors import UserError
from pipeline.train.options import at_least, one_of

ACTIONS = ("submit", "status", "logs", "stop")
TARGETS = ("ray", "kuberay")


@dataclass(frozen=True)
class CodeOptions:
    """The code that travels with the job."""

    ship: bool = True  # false: the image's own copy runs
    folder: str | None = None  # checkout to take; none: the one that this hip runs from
    include: tuple[str, ...] = ()  # more files or folders of the checkout, beside the packages and conf/
    limit_mib: float = 16.0  # largest sum of the files; the code itself is about 2

    def __post_init__(self) -> None:
        at_least("code.limit_mib", self.limit_mib, 0.01)


@dataclass(frozen=True)
class ClusterOptions:
    """What the cluster could become; without an autoscaler it is what it is."""

    max_cpus: float | None = None  # CPUs that the autoscaler may bring; none: those there now
    max_gpus: float | None = None
    wait_seconds: float = 120.0  # for the cluster to answer a check before the job is sent

    def __post_init__(self) -> None:
        at_least("cluster.max_cpus", self.max_cpus, 0)
        at_least("cluster.max_gpus", self.max_gpus, 0)
        at_least("cluster.wait_seconds", self.wait_seconds, 1)


@dataclass(frozen=True)
class DriverOptions:
    """Where the verb's own process runs."""

    cpus: float | None = None  # reserved for it on a worker; none: by the verb (0 = on the head)
    gpus: float | None = None

    def __post_init__(self) -> None:
        at_least("driver.cpus", self.cpus, 0)
        at_least("driver.gpus", self.gpus, 0)


@dataclass(frozen=True)
class SubmitOptions:
    """``hip submit``: where a verb is sent, and with what."""

    job: str | None = None  # the verb to send
    target: str = "ray"  # ray: a cluster that runs | kuberay: Kubernetes makes one
    address: str | None = None  # http://<head>:8265; none: RAY_API_SERVER_ADDRESS
    id: str | None = None  # of status, logs and stop: the submission id
    dry_run: bool = False  # check and show, send nothing
    follow: bool = True  # stream the logs until the job ends
    code: CodeOptions = field(default_factory=CodeOptions)
    env: dict[str, str] = field(default_factory=dict)  # environment variables of the job, none of them secret
    secrets: tuple[str, ...] = ()  # variables that the cluster must have already; never sent
    pip: tuple[str, ...] = ()  # packages that the image lacks (Ray installs them for this job)
    driver: DriverOptions = field(default_factory=DriverOptions)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    kuberay: KubeRayOptions = field(default_factory=KubeRayOptions)

    def __post_init__(self) -> None:
        one_of("target", self.target, TARGETS)
        check_environment(self.env)
        for name in self.secrets:
            if not name.isidentifier():
                raise UserError(
                    f"secrets holds {name.partition('=')[0]!r}, which is no variable name; give names only, such as "
                    "secrets=[MLFLOW_TRACKING_PASSWORD], and set the values on the cluster"
                )
