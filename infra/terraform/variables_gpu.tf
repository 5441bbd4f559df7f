# The GPU pools, each a map entry. docs/runbooks/gpu-pools.md has one example of each kind.
variable "gpu_pools" {
  description = <<-TEXT
    GPU pools by name. Every type of a pool has the same number of GPUs and much the same memory: the autoscaler
    computes with the first. on_demand takes the types in their order; spot takes the one with the most spare capacity.
    - capacity: spot, on_demand, spot_then_on_demand (the fallback starts when spot has none), capacity_block
    - zones: some of var.zones; empty: all. One zone where there is a placement group
    - efa_interfaces: network cards with EFA on each node (4 on p4d, 32 on p5); 0: none
    - placement_group: the nodes of one training stand close together
    - capacity_reservation_id: a reservation (on_demand) or a block (capacity_block) that is used
    - sharing: one GPU for several small pods, by time-slicing (no isolation) or MIG (slices of the hardware)
    - monthly_budget_usd: an alarm of its own
  TEXT

  type = map(object({
    instance_types          = list(string)
    gpus_per_node           = number
    capacity                = optional(string, "spot_then_on_demand")
    min_nodes               = optional(number, 0)
    max_nodes               = number
    zones                   = optional(list(string), [])
    disk_gb                 = optional(number, 300)
    efa_interfaces          = optional(number, 0)
    placement_group         = optional(bool, false)
    capacity_reservation_id = optional(string)
    labels                  = optional(map(string), {})
    monthly_budget_usd      = optional(number)
    sharing = optional(object({
      method       = string
      pods_per_gpu = number
      mig_gpu      = optional(string) # the GPU's name in Bottlerocket's settings, such as a100.40gb or h100.80gb
      mig_profile  = optional(string) # such as 1g.5gb
    }))
  }))
  default = {
    train = { instance_types = ["g6.2xlarge", "g5.2xlarge"], gpus_per_node = 1, max_nodes = 4 }
  }
  nullable = false

  validation {
    condition     = alltrue([for name, pool in var.gpu_pools : can(regex("^[a-z][a-z0-9-]{0,14}$", name))])
    error_message = "Expected names of pools of 1 to 15 lower-case letters, digits and dashes."
  }

  validation {
    condition     = alltrue([for pool in var.gpu_pools : length(pool.instance_types) > 0 && contains([1, 2, 4, 8], pool.gpus_per_node)])
    error_message = "Expected instance types, and 1, 2, 4 or 8 GPUs per node in every pool."
  }

  validation {
    condition     = alltrue([for pool in var.gpu_pools : contains(["spot", "on_demand", "spot_then_on_demand", "capacity_block"], pool.capacity)])
    error_message = "Expected the capacity of a pool to be spot, on_demand, spot_then_on_demand or capacity_block."
  }

  validation {
    condition     = alltrue([for pool in var.gpu_pools : pool.min_nodes >= 0 && pool.max_nodes >= 1 && pool.max_nodes >= pool.min_nodes && pool.disk_gb >= 100])
    error_message = "Expected 0 <= min_nodes <= max_nodes, max_nodes >= 1, and disks of 100 GB or more (image and scratch) in every pool."
  }

  validation {
    condition     = alltrue([for pool in var.gpu_pools : length(setsubtract(pool.zones, var.zones)) == 0])
    error_message = "Expected the zones of every pool to be some of var.zones."
  }

  validation {
    condition     = alltrue([for pool in var.gpu_pools : length(pool.zones) == 1 if pool.placement_group || pool.capacity == "capacity_block"])
    error_message = "Expected exactly one zone in a pool with a placement group or a capacity block: neither spans zones."
  }

  validation {
    condition = alltrue([for pool in var.gpu_pools :
      pool.capacity == "capacity_block" ? pool.capacity_reservation_id != null && length(pool.instance_types) == 1 : (
        pool.capacity == "on_demand" || pool.capacity_reservation_id == null
      )
    ])
    error_message = "Expected capacity_reservation_id with on_demand (optional) or capacity_block (always, with one type) only."
  }

  validation {
    condition     = alltrue([for pool in var.gpu_pools : pool.efa_interfaces >= 0 && pool.efa_interfaces <= 32 && floor(pool.efa_interfaces) == pool.efa_interfaces])
    error_message = "Expected 0 to 32 EFA interfaces on a node."
  }

  validation {
    condition = alltrue([for pool in var.gpu_pools : pool.sharing == null ? true : (
      pool.sharing.method == "time-slicing" ? pool.sharing.mig_gpu == null && pool.sharing.mig_profile == null : (
        pool.sharing.method == "mig" && pool.sharing.mig_gpu != null && pool.sharing.mig_profile != null
      )
    )])
    error_message = "Expected sharing by time-slicing, or by mig with mig_gpu and mig_profile."
  }

  validation {
    condition = alltrue([for pool in var.gpu_pools : pool.sharing == null ? true : (
      pool.sharing.pods_per_gpu >= 2 && pool.sharing.pods_per_gpu <= 16 && pool.max_nodes <= 4 && pool.efa_interfaces == 0 && !pool.placement_group
    )])
    error_message = "Expected shared pools to be small: 2 to 16 pods per GPU, at most 4 nodes, no EFA and no placement group."
  }
}
