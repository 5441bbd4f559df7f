# What every subject shares. Variables of one subject are in variables_SUBJECT.tf.
variable "name" {
  description = "Name of the installation: prefix of every resource, value of the tag Project, name of the cluster."
  type        = string
  default     = "millrace"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "Expected 3 to 20 lower-case letters, digits and dashes: roles and buckets add words to it."
  }
}

variable "environment" {
  description = "Value of the tag Environment."
  type        = string
  default     = "production"
  nullable    = false
}

variable "region" {
  description = "AWS region, such as eu-central-1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "Expected the name of an AWS region."
  }
}

variable "account_id" {
  description = "The only account this may be applied to; null accepts the account of the credentials."
  type        = string
  default     = null

  validation {
    condition     = var.account_id == null || can(regex("^[0-9]{12}$", var.account_id))
    error_message = "Expected the 12 digits of an AWS account."
  }
}

variable "zones" {
  description = "Availability zones, by name. GPUs are not in all of them: `aws ec2 describe-instance-type-offerings` says where."
  type        = list(string)

  validation {
    condition     = length(var.zones) >= 2 && length(var.zones) <= 6 && length(distinct(var.zones)) == length(var.zones)
    error_message = "Expected 2 to 6 different zones: EKS and RDS refuse a single one."
  }

  validation {
    condition     = alltrue([for zone in var.zones : startswith(zone, var.region)])
    error_message = "Expected every zone to be in var.region."
  }
}

variable "tags" {
  description = "More tags for every resource, such as a cost centre. Project, Environment and ManagedBy are set."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "deletion_protection" {
  description = "Refuse to delete the database, and buckets and repositories that hold something. Teardown sets it to false first."
  type        = bool
  default     = true
  nullable    = false
}

variable "log_retention_days" {
  description = "Days CloudWatch keeps the logs of the cluster, the network, the database and the pods."
  type        = number
  default     = 365
  nullable    = false

  validation {
    condition     = contains([30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1827], var.log_retention_days)
    error_message = "Expected one of the numbers of days that CloudWatch knows, 30 or more."
  }
}
