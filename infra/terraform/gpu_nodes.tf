# One launch template for each group of GPU nodes: disks, network cards, reservation, sharing.
locals {
  # Bottlerocket's settings of the device plugin; "" where GPUs are not shared.
  gpu_settings = { for name, pool in var.gpu_pools : name => pool.sharing == null ? "" : (
    pool.sharing.method == "time-slicing"
    ? <<-TOML
      [settings.kubelet-device-plugins.nvidia]
      device-sharing-strategy = "time-slicing"

      # Under its own name, nvidia.com/gpu: the label of the pool says that it is shared.
      [settings.kubelet-device-plugins.nvidia.time-slicing]
      replicas = ${pool.sharing.pods_per_gpu}
      rename-by-default = false
    TOML
    : <<-TOML
      [settings.kubelet-device-plugins.nvidia]
      device-partitioning-strategy = "mig"

      [settings.kubelet-device-plugins.nvidia.mig.profile]
      "${coalesce(pool.sharing.mig_gpu, "-")}" = "${coalesce(pool.sharing.mig_profile, "-")}"
    TOML
  ) }
}

resource "aws_launch_template" "gpu" {
  for_each               = local.gpu_groups
  name                   = "${var.name}-${each.key}"
  update_default_version = true
  instance_type          = each.value.kind == "block" ? var.gpu_pools[each.value.pool].instance_types[0] : null
  user_data              = local.gpu_settings[each.value.pool] == "" ? null : base64encode(local.gpu_settings[each.value.pool])

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1 # a pod is one hop further: it does not reach the node's role
  }

  block_device_mappings {
    device_name = local.system_disk
    ebs {
      volume_size           = 4
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  block_device_mappings {
    device_name = local.data_disk
    ebs {
      volume_size           = var.gpu_pools[each.value.pool].disk_gb
      volume_type           = "gp3"
      throughput            = 500 # an image of many gigabytes is unpacked while the GPUs are paid for
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "placement" {
    for_each = var.gpu_pools[each.value.pool].placement_group ? [aws_placement_group.gpu[each.value.pool].name] : []
    content {
      group_name = placement.value
    }
  }

  # Card 0 carries the node's addresses and EFA, the others EFA alone (they take no address of the subnet).
  dynamic "network_interfaces" {
    for_each = range(var.gpu_pools[each.value.pool].efa_interfaces)
    content {
      network_card_index    = network_interfaces.value
      device_index          = network_interfaces.value == 0 ? 0 : 1
      interface_type        = network_interfaces.value == 0 ? "efa" : "efa-only"
      security_groups       = [aws_eks_cluster.main.vpc_config[0].cluster_security_group_id, aws_security_group.efa[0].id]
      delete_on_termination = true
    }
  }

  dynamic "capacity_reservation_specification" {
    for_each = var.gpu_pools[each.value.pool].capacity_reservation_id[*]
    content {
      capacity_reservation_target {
        capacity_reservation_id = capacity_reservation_specification.value
      }
    }
  }

  dynamic "instance_market_options" {
    for_each = each.value.kind == "block" ? ["capacity-block"] : []
    content {
      market_type = instance_market_options.value
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume", "network-interface"])
    content {
      resource_type = tag_specifications.value
      tags          = merge(local.tags, { Name = "${var.name}-${each.key}", Pool = each.value.pool })
    }
  }
}
