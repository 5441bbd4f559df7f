# Who may reach the buckets at all, and how long old things are kept. What is current is deleted by `housekeeping`, not here:
# it knows which run folder a release still needs.
resource "aws_s3_bucket_policy" "main" {
  for_each = local.buckets
  bucket   = aws_s3_bucket.main[each.key].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        # Wildcard: a refusal, of everyone and everything without TLS.
        Sid       = "TlsOnly"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = "s3:*"
        Resource  = [aws_s3_bucket.main[each.key].arn, "${aws_s3_bucket.main[each.key].arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      }],
      each.key != "access" ? [] : [{
        Sid       = "AccessLogs"
        Effect    = "Allow"
        Principal = { Service = "logging.s3.amazonaws.com" }
        Action    = "s3:PutObject"
        Resource  = "${aws_s3_bucket.main[each.key].arn}/*"
        Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
      }],
    )
  })
  depends_on = [aws_s3_bucket_public_access_block.main]
}

resource "aws_s3_bucket_lifecycle_configuration" "main" {
  for_each = local.buckets
  bucket   = aws_s3_bucket.main[each.key].id

  rule {
    id     = "old-versions"
    status = "Enabled"
    filter {}
    noncurrent_version_expiration {
      noncurrent_days = each.value.keep_old_days
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 7 # the parts of a checkpoint whose pod was lost are billed and seen by nobody
    }
  }

  dynamic "rule" {
    for_each = contains(["logs", "access"], each.key) ? [var.log_retention_days] : []
    content {
      id     = "logs-end"
      status = "Enabled"
      filter {}
      expiration {
        days = rule.value
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.main]
}
