# From pools to node groups: a pool with a fallback becomes two groups, and everything that is derived is derived here.
locals {
  kinds_of_capacity = {
    spot                = ["spot"]
    on_demand           = ["on-demand"]
    spot_then_on_demand = ["spot", "on-demand"]
    capacity_block      = ["block"]
  }
  capacity_types = { spot = "SPOT", on-demand = "ON_DEMAND", block = "CAPACITY_BLOCK" }
  # What is paid for already comes first, then what is cheaper.
  capacity_rank = { block = 3, spot = 2, on-demand = 1 }

  # Whole GPUs carry the label that the launcher selects by default. A shared pool must not: a training would land on a slice.
  gpu_pool_labels = { for name, pool in var.gpu_pools : name => merge(
    pool.sharing == null ? { "nvidia.com/gpu.present" = "true" } : { "nvidia.com/gpu.shared" = "true" },
    # By this label the autoscaler knows that a new node's GPUs are still to come, and starts no second node.
    { "k8s.amazonaws.com/accelerator" = "nvidia", "millrace-pool" = name },
    pool.labels,
  ) }

  gpu_groups = merge([for name, pool in var.gpu_pools : {
    for kind in local.kinds_of_capacity[pool.capacity] : "${name}-${kind}" => {
      pool          = name
      kind          = kind
      capacity_type = local.capacity_types[kind]
      labels        = local.gpu_pool_labels[name]
      # The smallest node that fits comes first: a training on one GPU must not open a node with eight.
      priority = (10 - pool.gpus_per_node) * 10 + local.capacity_rank[kind]
      # What a node advertises as nvidia.com/gpu.
      gpus       = pool.gpus_per_node * (pool.sharing == null ? 1 : pool.sharing.pods_per_gpu)
      subnet_ids = [for zone in(length(pool.zones) > 0 ? pool.zones : var.zones) : aws_subnet.private[zone].id]
    }
  }]...)

  # Tags by which the autoscaler knows the nodes of a group that has none. EKS does not copy a group's tags to its
  # Auto Scaling group, and the autoscaler's own look at labels and taints does not tell it about GPUs.
  autoscaler_tags = merge([for group, settings in local.gpu_groups : {
    for tag, value in merge(
      { "taint/nvidia.com/gpu" = "present:NoSchedule" },
      { "resources/nvidia.com/gpu" = tostring(settings.gpus) },
      { "resources/ephemeral-storage" = "${var.gpu_pools[settings.pool].disk_gb}G" },
      { for key, value in settings.labels : "label/${key}" => value },
      { "label/eks.amazonaws.com/capacityType" = settings.capacity_type },
    ) : "${group} ${tag}" => { group = group, key = "k8s.io/cluster-autoscaler/node-template/${tag}", value = value }
  }]...)
}
