# Alarms on cost, by tag: one for the installation, and one for each GPU pool that has a budget. AWS sees a tag in its bills
# only after it was activated as a cost allocation tag (Project and Pool; docs/runbooks/first-deployment.md).
locals {
  budgets = merge(
    { all = { limit = var.budget_monthly_usd, filter = format("user:Project$%s", var.name) } },
    { for name, pool in var.gpu_pools : "pool-${name}" => { limit = pool.monthly_budget_usd, filter = format("user:Pool$%s", name) } if pool.monthly_budget_usd != null },
  )
  alarms = [
    { kind = "ACTUAL", percent = 50 },
    { kind = "ACTUAL", percent = 80 },
    { kind = "ACTUAL", percent = 100 },
    { kind = "FORECASTED", percent = 100 },
  ]
}

resource "aws_budgets_budget" "main" {
  for_each     = local.budgets
  name         = "${var.name}-${each.key}"
  budget_type  = "COST"
  time_unit    = "MONTHLY"
  limit_amount = tostring(each.value.limit)
  limit_unit   = "USD"

  cost_filter {
    name   = "TagKeyValue"
    values = [each.value.filter]
  }

  dynamic "notification" {
    for_each = local.alarms
    content {
      comparison_operator        = "GREATER_THAN"
      notification_type          = notification.value.kind
      threshold                  = notification.value.percent
      threshold_type             = "PERCENTAGE"
      subscriber_email_addresses = var.budget_emails
    }
  }
}
