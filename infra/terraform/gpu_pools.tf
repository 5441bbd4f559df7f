# The GPU nodes. They start at none, scale from zero, and only pods that ask for a GPU land on them.
# Bottlerocket's NVIDIA image carries the driver, the container toolkit and the device plugin.
resource "aws_placement_group" "gpu" {
  for_each = { for name, pool in var.gpu_pools : name => pool if pool.placement_group }
  name     = "${var.name}-${each.key}"
  strategy = "cluster"
  tags     = { Pool = each.key }
}

resource "aws_eks_node_group" "gpu" {
  for_each        = local.gpu_groups
  cluster_name    = aws_eks_cluster.main.name
  node_group_name = "${var.name}-${each.key}"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = each.value.subnet_ids
  # EKS wants the type of a capacity block in the launch template.
  instance_types = each.value.kind == "block" ? null : var.gpu_pools[each.value.pool].instance_types
  capacity_type  = each.value.capacity_type
  ami_type       = "BOTTLEROCKET_x86_64_NVIDIA"
  labels         = each.value.labels
  tags           = { Pool = each.value.pool }

  taint {
    key    = "nvidia.com/gpu"
    value  = "present"
    effect = "NO_SCHEDULE"
  }

  launch_template {
    id      = aws_launch_template.gpu[each.key].id
    version = aws_launch_template.gpu[each.key].latest_version
  }

  scaling_config {
    min_size     = var.gpu_pools[each.value.pool].min_nodes
    max_size     = var.gpu_pools[each.value.pool].max_nodes
    desired_size = var.gpu_pools[each.value.pool].min_nodes
  }

  update_config {
    max_unavailable = 1
  }

  node_repair_config {
    enabled = true # a node whose GPU fails is replaced
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size] # the autoscaler's
  }

  depends_on = [aws_iam_role_policy_attachment.node, aws_eks_addon.before_nodes]
}

resource "aws_autoscaling_group_tag" "gpu" {
  for_each               = local.autoscaler_tags
  autoscaling_group_name = aws_eks_node_group.gpu[each.value.group].resources[0].autoscaling_groups[0].name

  tag {
    key                 = each.value.key
    value               = each.value.value
    propagate_at_launch = false
  }
}
