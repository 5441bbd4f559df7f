# Three keys, so that whoever may read logs cannot read data: cluster (secrets of Kubernetes), data (buckets, registry,
# database), logs (CloudWatch). Disks of nodes use the account's own EBS key: they hold caches, no state.
locals {
  key_purposes = {
    cluster = "secrets of the cluster"
    data    = "buckets, image registry and database"
    logs    = "CloudWatch logs"
  }

  # In the policy of a key, the resource "*" is that key.
  key_owner = {
    # Wildcard: the account's IAM policies decide about the key; without this statement nobody could ever change it.
    Sid       = "IamPoliciesDecide"
    Effect    = "Allow"
    Principal = { AWS = "arn:${local.partition}:iam::${local.account}:root" }
    Action    = "kms:*"
    Resource  = "*"
  }
  key_for_logs = {
    # Wildcard: the resource is this key; the condition names the log groups of this installation.
    Sid       = "CloudWatchLogs"
    Effect    = "Allow"
    Principal = { Service = "logs.${var.region}.amazonaws.com" }
    Action    = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
    Resource  = "*"
    Condition = {
      ArnEquals = { "kms:EncryptionContext:aws:logs:arn" = [for name in values(local.log_groups) : "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:${name}"] }
    }
  }
}

resource "aws_kms_key" "main" {
  for_each                = local.key_purposes
  description             = "${var.name}: ${each.value}"
  enable_key_rotation     = true
  deletion_window_in_days = 30 # a key deleted by mistake takes all its data with it
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = concat([local.key_owner], each.key == "logs" ? [local.key_for_logs] : [])
  })
}

resource "aws_kms_alias" "main" {
  for_each      = local.key_purposes
  name          = "alias/${var.name}-${each.key}"
  target_key_id = aws_kms_key.main[each.key].key_id
}
