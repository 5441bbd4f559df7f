# Network and cluster.
variable "vpc_cidr" {
  description = "Addresses of the VPC: a /16. Every pod takes one of them."
  type        = string
  default     = "10.0.0.0/16"
  nullable    = false

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && endswith(var.vpc_cidr, "/16")
    error_message = "Expected a /16, such as 10.0.0.0/16."
  }
}

variable "nat" {
  description = "Way out of the private subnets: one_per_zone, one (cheaper, one zone's failure cuts all), or none (nothing but the endpoints is reached)."
  type        = string
  default     = "one"
  nullable    = false

  validation {
    condition     = contains(["one_per_zone", "one", "none"], var.nat)
    error_message = "Expected one_per_zone, one or none."
  }
}

variable "interface_endpoints" {
  description = "AWS services reached without NAT, each billed by the hour and zone. null: ECR alone, or all that nodes and stages need where nat is none."
  type        = set(string)
  default     = null

  validation {
    condition     = var.interface_endpoints == null ? true : length(setsubtract(["ecr.api", "ecr.dkr"], var.interface_endpoints)) == 0
    error_message = "Expected at least ecr.api and ecr.dkr: images of several gigabytes must not go through NAT."
  }
}

variable "cluster_version" {
  description = "Kubernetes version of the cluster. AWS bills old ones more: see the EKS release calendar."
  type        = string
  default     = "1.34"
  nullable    = false

  validation {
    condition     = can(regex("^1\\.(2[4-9]|[3-9][0-9])$", var.cluster_version))
    error_message = "Expected 1.24 or later (Indexed Jobs with stable names), such as 1.34."
  }
}

variable "cluster_public_access_cidrs" {
  description = "Who may reach the cluster's API from the internet. Empty: nobody, the endpoint is private."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for cidr in var.cluster_public_access_cidrs : can(cidrhost(cidr, 0)) && !endswith(cidr, "/0")])
    error_message = "Expected address ranges that are not the whole internet."
  }
}

variable "cluster_private_access_cidrs" {
  description = "Who may reach the private endpoint besides the nodes: a VPN, a bastion, a peered network."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for cidr in var.cluster_private_access_cidrs : can(cidrhost(cidr, 0)) && !endswith(cidr, "/0")])
    error_message = "Expected address ranges that are not the whole internet."
  }
}

variable "cluster_admins" {
  description = "ARNs of the IAM roles whose holders administer the cluster. Without one, nobody can use kubectl."
  type        = set(string)
  nullable    = false

  validation {
    condition     = length(var.cluster_admins) > 0 && alltrue([for arn in var.cluster_admins : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/", arn))])
    error_message = "Expected one or more ARNs of IAM roles (or users)."
  }
}

variable "cpu_pool" {
  description = "Nodes for Airflow, MLflow, the assistant and the stages without GPUs. Types in order of preference, of one size."
  type = object({
    instance_types = optional(list(string), ["m7i.2xlarge", "m6i.2xlarge"])
    min_nodes      = optional(number, 2)
    max_nodes      = optional(number, 6)
    disk_gb        = optional(number, 100)
  })
  default  = {}
  nullable = false

  validation {
    condition     = length(var.cpu_pool.instance_types) > 0 && var.cpu_pool.min_nodes >= 1 && var.cpu_pool.max_nodes >= var.cpu_pool.min_nodes
    error_message = "Expected instance types, and 1 <= min_nodes <= max_nodes: the autoscaler itself runs here."
  }
}
