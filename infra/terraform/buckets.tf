# The buckets: encrypted with our key, versioned, never public, over TLS only.
locals {
  buckets = {
    artifacts = { keep_old_days = 30 } # runs, datasets, models, reports: MILLRACE_S3_BUCKET
    documents = { keep_old_days = 90 } # the corpus and the training examples, put there by you
    mlflow    = { keep_old_days = 30 } # MLflow's artifacts
    backups   = { keep_old_days = 30 } # of databases and buckets; one in another account is safer: docs/backup.md
    logs      = { keep_old_days = 7 }  # Airflow's task logs
    access    = { keep_old_days = 7 }  # who read or wrote the others
  }
  bucket_prefix = "${var.name}-${local.account}-${var.region}" # names of buckets are the world's
}

resource "aws_s3_bucket" "main" {
  # checkov:skip=CKV_AWS_18: all but `access` itself are logged (below); checkov does not follow for_each there
  # checkov:skip=CKV_AWS_144: one region; what cannot be made again (documents, releases) is versioned. A copy elsewhere is yours to decide
  # checkov:skip=CKV_AWS_145: KMS for all but `access`: S3 delivers access logs to buckets with its own key only
  # checkov:skip=CKV2_AWS_62: nothing listens; Airflow's schedules start the work
  for_each      = local.buckets
  bucket        = "${local.bucket_prefix}-${each.key}"
  force_destroy = !var.deletion_protection
}

resource "aws_s3_bucket_versioning" "main" {
  for_each = local.buckets
  bucket   = aws_s3_bucket.main[each.key].id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "main" {
  for_each = local.buckets
  bucket   = aws_s3_bucket.main[each.key].id
  rule {
    bucket_key_enabled = true # one call to KMS for many objects
    apply_server_side_encryption_by_default {
      # S3 delivers access logs to buckets with its own key only.
      sse_algorithm     = each.key == "access" ? "AES256" : "aws:kms"
      kms_master_key_id = each.key == "access" ? null : aws_kms_key.main["data"].arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "main" {
  for_each                = local.buckets
  bucket                  = aws_s3_bucket.main[each.key].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "main" {
  for_each = local.buckets
  bucket   = aws_s3_bucket.main[each.key].id
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_logging" "main" {
  for_each      = { for name, bucket in local.buckets : name => bucket if name != "access" }
  bucket        = aws_s3_bucket.main[each.key].id
  target_bucket = aws_s3_bucket.main["access"].id
  target_prefix = "${each.key}/"
  depends_on    = [aws_s3_bucket_policy.main]
}
