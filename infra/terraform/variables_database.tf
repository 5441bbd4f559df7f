# The database, and alarms on cost.
variable "database" {
  description = "PostgreSQL on RDS; pgvector is among its extensions. The disk grows by itself up to max_storage_gb."
  type = object({
    engine_version = optional(string, "17")
    instance_class = optional(string, "db.m7g.large")
    storage_gb     = optional(number, 100)
    max_storage_gb = optional(number, 500)
  })
  default  = {}
  nullable = false

  validation {
    condition     = can(regex("^(1[6-9]|[2-9][0-9])(\\.[0-9]+)?$", var.database.engine_version))
    error_message = "Expected PostgreSQL 16 or later, such as 17 or 17.6."
  }

  validation {
    condition     = var.database.storage_gb >= 20 && var.database.max_storage_gb > var.database.storage_gb
    error_message = "Expected 20 GB or more, and max_storage_gb above storage_gb."
  }
}

variable "database_multi_az" {
  description = "A standby in another zone: twice the price, and a zone may fail."
  type        = bool
  default     = true
  nullable    = false
}

variable "database_backup_days" {
  description = "Days to which the database can be set back."
  type        = number
  default     = 14
  nullable    = false

  validation {
    condition     = var.database_backup_days >= 7 && var.database_backup_days <= 35
    error_message = "Expected 7 to 35 days of backups."
  }
}

variable "budget_monthly_usd" {
  description = "What the installation may cost in a month: an alarm, not a limit."
  type        = number

  validation {
    condition     = var.budget_monthly_usd > 0
    error_message = "Expected an amount above 0."
  }
}

variable "budget_emails" {
  description = "Who is told when the budget nears its end."
  type        = list(string)
  nullable    = false

  validation {
    condition     = length(var.budget_emails) > 0 && length(var.budget_emails) <= 10 && alltrue([for mail in var.budget_emails : can(regex("^[^@ ]+@[^@ ]+$", mail))])
    error_message = "Expected 1 to 10 mail addresses."
  }
}
