"""infra/terraform is applied to an emulator of AWS (moto), looked at, and destroyed: nothing is left.

The emulator starts no machine and checks no permission. What it lacks is in emulator_override.tf.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tasks.settings import variable_names

from .conftest import FOLDER, Terraform, copy_of

REGION = "eu-central-1"
SAID = (f"-var=region={REGION}", f'-var=zones=["{REGION}a","{REGION}b"]', "-var=budget_monthly_usd=2000")
SAID += (
    '-var=cluster_admins=["arn:aws:iam::111122223333:role/platform"]',
    '-var=budget_emails=["platform@example.com"]',
)
# No protection, because the provider waits minutes while a database's is taken away. Most of what it does is waiting.
SAID += ("-var=deletion_protection=false",)
OPTIONS = ("-auto-approve", "-input=false", "-no-color", "-parallelism=30", *SAID)
# AWS keeps these lists itself; each is as narrow as the component's documentation asks for.
AWS_POLICIES = {
    "AmazonEC2ContainerRegistryPullOnly",
    "AmazonEKSClusterPolicy",
    "AmazonEKSWorkerNodePolicy",
    "AmazonEKS_CNI_Policy",
    "AmazonRDSEnhancedMonitoringRole",
}

pytestmark = [pytest.mark.terraform, pytest.mark.slow]


class Aws:
    """boto3 clients of the emulator."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = boto3.session.Session(
            aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION
        )

    def __call__(self, service: str) -> Any:
        return self._session.client(service, endpoint_url=self.url)

    def inventory(self) -> dict[str, list[str]]:
        """Return what is there, by kind: what is billed, and what would be in the way of the next apply."""
        ec2, iam, rds, kms = self("ec2"), self("iam"), self("rds"), self("kms")
        keys = [kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"] for key in kms.list_keys()["Keys"]]
        return {
            "clusters": self("eks").list_clusters()["clusters"],
            "vpcs": _ids(ec2.describe_vpcs()["Vpcs"], "VpcId"),
            "subnets": _ids(ec2.describe_subnets()["Subnets"], "SubnetId"),
            "endpoints": _ids(ec2.describe_vpc_endpoints()["VpcEndpoints"], "VpcEndpointId", "State", "deleted"),
            "nat gateways": _ids(ec2.describe_nat_gateways()["NatGateways"], "NatGatewayId", "State", "deleted"),
            "addresses": _ids(ec2.describe_addresses()["Addresses"], "AllocationId"),
            "security groups": _ids(ec2.describe_security_groups()["SecurityGroups"], "GroupId"),
            "launch templates": _ids(ec2.describe_launch_templates()["LaunchTemplates"], "LaunchTemplateId"),
            "flow logs": _ids(ec2.describe_flow_logs()["FlowLogs"], "FlowLogId"),
            "roles": _ids(iam.list_roles()["Roles"], "RoleName"),
            "buckets": _ids(self("s3").list_buckets()["Buckets"], "Name"),
            "repositories": _ids(self("ecr").describe_repositories()["repositories"], "repositoryName"),
            "databases": _ids(rds.describe_db_instances()["DBInstances"], "DBInstanceIdentifier"),
            "database snapshots": _ids(rds.describe_db_snapshots()["DBSnapshots"], "DBSnapshotIdentifier"),
            "subnet groups": _ids(rds.describe_db_subnet_groups()["DBSubnetGroups"], "DBSubnetGroupName"),
            "parameter groups": _ids(rds.describe_db_parameter_groups()["DBParameterGroups"], "DBParameterGroupName"),
            # A deleted key is billed no more, but exists for the days in which its deletion can be taken back.
            "keys": _ids(keys, "KeyId", "KeyState", "PendingDeletion"),
            "log groups": _ids(self("logs").describe_log_groups()["logGroups"], "logGroupName"),
            "scaling groups": _ids(
                self("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"], "AutoScalingGroupName"
            ),
        }


def _ids(rows: list[dict[str, Any]], name: str, state: str = "", gone: str = "") -> list[str]:
    return sorted(row[name] for row in rows if not state or row.get(state) != gone)


class Installation:
    """What was applied: the copy of the code, the emulator, its inventory before, and the state."""

    def __init__(self, terraform: Terraform, aws: Aws) -> None:
        self.terraform, self.aws, self.before = terraform, aws, aws.inventory()
        self.state: dict[str, Any] = {}

    def read(self) -> None:
        self.state = json.loads(self.terraform("show", "-json"))["values"]

    def resources(self, kind: str = "") -> list[dict[str, Any]]:
        managed = [each for each in self.state["root_module"]["resources"] if each["mode"] == "managed"]
        return [each for each in managed if not kind or each["type"] == kind]

    def gpu_groups(self) -> list[dict[str, Any]]:
        return [each["values"] for each in self.resources("aws_eks_node_group") if each["name"] == "gpu"]

    def output(self, name: str) -> Any:
        return self.state["outputs"][name]["value"]


def scaling_group(group: dict[str, Any]) -> str:
    return str(group["resources"][0]["autoscaling_groups"][0]["name"])


@pytest.fixture(scope="module")
def installation(plugins: Path, emulator: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = copy_of(tmp_path_factory.mktemp("apply") / "terraform")
    shutil.copy(Path(__file__).with_name("emulator_override.tf"), folder)
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    # Three attempts: what the emulator cannot do fails at once, and not after minutes.
    terraform = Terraform(folder, plugins, credentials | {"AWS_ENDPOINT_URL": emulator, "AWS_MAX_ATTEMPTS": "3"})
    terraform.init()
    installed = Installation(terraform, Aws(emulator))
    # EKS makes an Auto Scaling group for each node group. The emulator only names it: it is made here, in between.
    # What the provider waits longest for is in the first apply too, side by side.
    targets = [
        f"-target=aws_{name}"
        for name in ("eks_node_group.gpu", "s3_bucket_lifecycle_configuration.main", "db_instance.main")
    ]
    terraform("apply", *OPTIONS, *targets)
    installed.read()
    for group in installed.gpu_groups():
        installed.aws("autoscaling").create_auto_scaling_group(
            AutoScalingGroupName=scaling_group(group),
            MinSize=0,
            MaxSize=group["scaling_config"][0]["max_size"],
            LaunchTemplate={"LaunchTemplateId": group["launch_template"][0]["id"]},
            VPCZoneIdentifier=",".join(group["subnet_ids"]),
        )
    terraform("apply", *OPTIONS)
    installed.read()
    yield installed


def test_everything_exists(installation: Installation) -> None:
    now = installation.aws.inventory()
    grown = {kind for kind, ids in now.items() if set(ids) > set(installation.before[kind])}
    assert grown | {"database snapshots"} == set(now)
    assert now["clusters"] == ["millrace"]
    assert [each["node_group_name"] for each in installation.gpu_groups()] == [
        "millrace-train-on-demand",
        "millrace-train-spot",
    ]


def test_the_autoscaler_finds_what_a_node_would_have(installation: Installation) -> None:
    groups = installation.aws("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    for group in groups:
        tags = {
            tag["Key"].removeprefix("k8s.io/cluster-autoscaler/node-template/"): tag["Value"] for tag in group["Tags"]
        }
        assert tags["taint/nvidia.com/gpu"] == "present:NoSchedule"
        assert tags["resources/nvidia.com/gpu"] == "1"
        assert tags["label/nvidia.com/gpu.present"] == "true"
        assert (group["MinSize"], group["MaxSize"]) == (0, 4)
    assert len(groups) == 2


def test_every_resource_is_tagged_for_cost(installation: Installation) -> None:
    wanted = {"Project": "millrace", "Environment": "production", "ManagedBy": "terraform"}
    tagged = [each for each in installation.resources() if each["values"].get("tags_all") is not None]
    assert len(tagged) > 50
    for each in tagged:
        assert wanted.items() <= each["values"]["tags_all"].items(), each["address"]
    for template in installation.resources("aws_launch_template"):
        specifications = {row["resource_type"]: row["tags"] for row in template["values"]["tag_specifications"]}
        for started in ("instance", "volume", "network-interface"):
            assert wanted.items() <= specifications[started].items() and "Pool" in specifications[started], template[
                "address"
            ]


def statements(installation: Installation) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield address and statement of every policy that was applied."""
    for each in installation.resources():
        # Not a policy of access; and endpoints without a policy of ours get one of AWS, of no own words.
        if each["type"] == "aws_ecr_lifecycle_policy" or each["address"].startswith("aws_vpc_endpoint.interface"):
            continue
        for name in ("policy", "assume_role_policy"):
            if text := each["values"].get(name):
                for statement in json.loads(text)["Statement"]:
                    yield each["address"], statement


def test_no_wildcard_without_an_explanation(installation: Installation) -> None:
    """A statement on everything, or with every action, has a line `# Wildcard: why` above its name."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.tf")))
    explained = set(re.findall(r'# Wildcard: \S.{20,}\n\s*Sid\s+= "(\w+)"', source))
    found = set()
    seen = 0
    for address, statement in statements(installation):
        seen += 1
        assert not {"NotAction", "NotResource", "NotPrincipal"} & set(statement), address
        actions, resources = (_list(statement.get(name, [])) for name in ("Action", "Resource"))
        if "*" in "".join(actions) or "*" in resources:
            found.add(statement["Sid"])
            assert statement["Sid"] in explained, f"{address}: {statement}"
        # Below a bucket, a cluster or a log group, everything; but only below one of this installation.
        for resource in resources:
            whole = resource.removesuffix("/*").removesuffix(":*")
            assert resource == "*" or "*" not in whole, f"{address}: {resource}"
            known = ("millrace", ":kms:", "starport-layer-bucket")
            assert resource == "*" or any(word in resource for word in known), f"{address}: {resource}"
        if statement["Effect"] == "Allow" and not address.startswith("aws_vpc_endpoint"):
            assert "*" not in json.dumps(statement.get("Principal", {})), address
    assert seen > 25
    assert found == explained, "an explanation whose wildcard is gone"


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_no_policy_of_aws_but_those_listed(installation: Installation) -> None:
    attached = {
        each["values"]["policy_arn"].rpartition("/")[2]
        for each in installation.resources("aws_iam_role_policy_attachment")
    }
    assert attached == AWS_POLICIES


def test_a_component_reaches_its_own_buckets_only(installation: Installation) -> None:
    reached: dict[str, set[str]] = {}
    for address, statement in statements(installation):
        if match := re.match(r'aws_iam_role_policy\.component\["(\w+)"\]', address):
            for resource in _list(statement["Resource"]):
                if ":s3:::" in resource:
                    verb = "writes" if "s3:PutObject" in statement["Action"] else "reads"
                    bucket = resource.removesuffix("/*").rpartition("-")[2]
                    reached.setdefault(match[1], set()).add(f"{verb} {bucket}")
    assert reached == {
        "stages": {"reads artifacts", "writes artifacts", "reads documents"},
        "airflow": {"reads artifacts", "reads logs", "writes logs"},
        "mlflow": {"reads mlflow", "writes mlflow"},
        "assistant": {"reads artifacts"},
        "backup": {"reads artifacts", "reads documents", "reads mlflow", "reads backups", "writes backups"},
    }


def test_outputs_fit_the_launcher_and_airflow(installation: Installation) -> None:
    stage = dict(line.split("=", 1) for line in installation.output("stage_env").splitlines())
    assert {name for name in stage if name.startswith("MILLRACE_")} <= set(variable_names())
    label, _, value = stage["MILLRACE_GPU_POOL_LABEL"].partition("=")
    assert all(group["labels"][label] == value for group in installation.gpu_groups())
    assert stage["MILLRACE_S3_BUCKET"] in installation.aws.inventory()["buckets"]
    connections = {name: json.loads(text) for name, text in installation.output("airflow_connections").items()}
    assert {name: each["conn_type"] for name, each in connections.items()} == {
        "aws_default": "aws",
        "kubernetes_default": "kubernetes",
    }
    assert "password" not in json.dumps(installation.state["outputs"]).replace("master password", "").lower()


def test_destroying_leaves_nothing(installation: Installation) -> None:
    # EKS deletes its Auto Scaling groups with the node groups; the emulator does not have them.
    for group in installation.gpu_groups():
        installation.aws("autoscaling").delete_auto_scaling_group(
            AutoScalingGroupName=scaling_group(group), ForceDelete=True
        )
    installation.terraform("state", "rm", "aws_autoscaling_group_tag.gpu")
    installation.terraform("destroy", "-refresh=false", *OPTIONS)
    assert installation.aws.inventory() == installation.before
    assert installation.terraform("state", "list").strip() == ""
