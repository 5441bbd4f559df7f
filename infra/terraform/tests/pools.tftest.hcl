# What the GPU pools become. Plans only: no account, no network. terraform test runs it from infra/terraform.
mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  gpu_pools = {
    train = { instance_types = ["g6.2xlarge", "g5.2xlarge"], gpus_per_node = 1, max_nodes = 4, monthly_budget_usd = 500 }
    nodes = {
      instance_types          = ["p5.48xlarge"], gpus_per_node = 8, max_nodes = 2, zones = ["eu-central-1b"], capacity = "on_demand"
      efa_interfaces          = 32, placement_group = true, disk_gb = 500, labels = { "team" = "research" }
      capacity_reservation_id = "cr-0123456789abcdef0"
    }
    block  = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, max_nodes = 1, zones = ["eu-central-1a"], capacity = "capacity_block", capacity_reservation_id = "cr-0fedcba9876543210" }
    slices = { instance_types = ["g6.xlarge"], gpus_per_node = 1, max_nodes = 2, capacity = "spot", sharing = { method = "time-slicing", pods_per_gpu = 4 } }
    mig    = { instance_types = ["p4d.24xlarge"], gpus_per_node = 8, max_nodes = 1, capacity = "on_demand", sharing = { method = "mig", pods_per_gpu = 7, mig_gpu = "a100.40gb", mig_profile = "1g.5gb" } }
  }
}

run "pools" {
  command = plan

  assert {
    condition     = toset(keys(aws_eks_node_group.gpu)) == toset(["train-spot", "train-on-demand", "nodes-on-demand", "block-block", "slices-spot", "mig-on-demand"])
    error_message = "A pool with a fallback is two groups, every other is one."
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.gpu : group.scaling_config[0].min_size == 0 && group.scaling_config[0].desired_size == 0])
    error_message = "Every GPU pool rests at no node."
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.gpu : [for taint in group.taint : "${taint.key}=${taint.value}:${taint.effect}"] == ["nvidia.com/gpu=present:NO_SCHEDULE"]])
    error_message = "Every GPU node has the taint nvidia.com/gpu=present:NoSchedule and no other."
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.gpu : group.ami_type == "BOTTLEROCKET_x86_64_NVIDIA"])
    error_message = "GPU nodes start from an image with driver and device plugin."
  }
  assert {
    condition     = aws_eks_node_group.gpu["train-spot"].capacity_type == "SPOT" && aws_eks_node_group.gpu["train-on-demand"].capacity_type == "ON_DEMAND" && aws_eks_node_group.gpu["block-block"].capacity_type == "CAPACITY_BLOCK"
    error_message = "A group has the capacity its name says."
  }
  assert {
    condition     = aws_eks_node_group.gpu["train-on-demand"].instance_types == tolist(["g6.2xlarge", "g5.2xlarge"])
    error_message = "Types keep their order of preference."
  }
  assert {
    condition     = local.gpu_groups["train-spot"].priority > local.gpu_groups["train-on-demand"].priority && local.gpu_groups["train-on-demand"].priority > local.gpu_groups["block-block"].priority
    error_message = "Spot comes before its fallback, and a node with one GPU before one with eight."
  }
  assert {
    condition     = yamldecode(output.autoscaler_helm_values).expanderPriorities["91"] == ["^eks-millrace-train-on-demand-[0-9a-f]{8}-.*"] && contains(yamldecode(output.autoscaler_helm_values).expanderPriorities["92"], "^eks-millrace-train-spot-[0-9a-f]{8}-.*")
    error_message = "The autoscaler is told that order."
  }
}

run "scale_from_zero" {
  command = plan

  assert {
    condition = alltrue([for group in keys(aws_eks_node_group.gpu) : alltrue([for tag in ["taint/nvidia.com/gpu", "resources/nvidia.com/gpu", "label/millrace-pool"] :
      contains(keys(aws_autoscaling_group_tag.gpu), "${group} ${tag}")
    ])])
    error_message = "The autoscaler knows taint, GPUs and labels of every group that has no node."
  }
  assert {
    condition     = aws_autoscaling_group_tag.gpu["nodes-on-demand taint/nvidia.com/gpu"].tag[0].value == "present:NoSchedule" && aws_autoscaling_group_tag.gpu["nodes-on-demand label/team"].tag[0].value == "research"
    error_message = "Tags have Kubernetes' words for taints, and the labels of the pool."
  }
  assert {
    condition     = aws_autoscaling_group_tag.gpu["nodes-on-demand resources/nvidia.com/gpu"].tag[0].value == "8" && aws_autoscaling_group_tag.gpu["slices-spot resources/nvidia.com/gpu"].tag[0].value == "4" && aws_autoscaling_group_tag.gpu["mig-on-demand resources/nvidia.com/gpu"].tag[0].value == "56"
    error_message = "A shared GPU counts as many times as it is shared."
  }
}

run "several_nodes" {
  command = plan

  assert {
    condition     = length(aws_launch_template.gpu["nodes-on-demand"].network_interfaces) == 32 && length(aws_launch_template.gpu["train-spot"].network_interfaces) == 0
    error_message = "A node has the EFA cards that were asked for, and none where none were."
  }
  assert {
    condition     = [for card in aws_launch_template.gpu["nodes-on-demand"].network_interfaces : card.interface_type][0] == "efa" && alltrue([for card in slice(aws_launch_template.gpu["nodes-on-demand"].network_interfaces, 1, 32) : card.interface_type == "efa-only" && card.device_index == 1])
    error_message = "The first card has addresses, the others EFA alone."
  }
  assert {
    condition     = aws_placement_group.gpu["nodes"].strategy == "cluster" && length(aws_eks_node_group.gpu["nodes-on-demand"].subnet_ids) == 1
    error_message = "The nodes of one training stand together in one zone."
  }
  assert {
    condition     = aws_launch_template.gpu["nodes-on-demand"].capacity_reservation_specification[0].capacity_reservation_target[0].capacity_reservation_id == "cr-0123456789abcdef0"
    error_message = "A reservation is used."
  }
  assert {
    condition     = aws_launch_template.gpu["block-block"].instance_market_options[0].market_type == "capacity-block" && aws_launch_template.gpu["block-block"].instance_type == "p5.48xlarge"
    error_message = "A capacity block names its type in the launch template."
  }
}

run "sharing" {
  command = plan

  assert {
    condition     = strcontains(base64decode(aws_launch_template.gpu["slices-spot"].user_data), "replicas = 4\nrename-by-default = false")
    error_message = "Time-slicing is set, under the GPU's own name."
  }
  assert {
    condition     = strcontains(base64decode(aws_launch_template.gpu["mig-on-demand"].user_data), "\"a100.40gb\" = \"1g.5gb\"")
    error_message = "MIG has its profile."
  }
  assert {
    condition     = aws_eks_node_group.gpu["train-spot"].labels["nvidia.com/gpu.present"] == "true" && !contains(keys(aws_eks_node_group.gpu["slices-spot"].labels), "nvidia.com/gpu.present")
    error_message = "A training, which selects nvidia.com/gpu.present, never lands on a shared GPU."
  }
  assert {
    condition     = aws_budgets_budget.main["pool-train"].limit_amount == "500" && length(aws_budgets_budget.main) == 2
    error_message = "A pool with a budget has an alarm of its own."
  }
}
