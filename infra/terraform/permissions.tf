# What each component may do. Nothing here can delete a bucket, change a policy or read another component's bucket.
locals {
  objects = { for name, bucket in aws_s3_bucket.main : name => "${bucket.arn}/*" }

  list_bucket = { for name, bucket in aws_s3_bucket.main : name => {
    Sid      = "List${title(name)}"
    Effect   = "Allow"
    Action   = ["s3:GetBucketLocation", "s3:ListBucket"]
    Resource = bucket.arn
  } }
  read_objects = { for name, objects in local.objects : name => {
    Sid      = "Read${title(name)}"
    Effect   = "Allow"
    Action   = ["s3:GetObject"]
    Resource = objects
  } }
  write_objects = { for name, objects in local.objects : name => {
    Sid      = "Write${title(name)}"
    Effect   = "Allow"
    Action   = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:PutObject"]
    Resource = objects
  } }

  # The data key, and only through S3: nobody decrypts the database or an image layer with it.
  use_data_key = {
    Sid       = "UseKeyThroughS3"
    Effect    = "Allow"
    Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
    Resource  = aws_kms_key.main["data"].arn
    Condition = { StringEquals = { "kms:ViaService" = "s3.${var.region}.amazonaws.com" } }
  }

  permissions = {
    # The stages write runs, datasets, models and reports, and read documents and examples.
    stages = [local.list_bucket["artifacts"], local.write_objects["artifacts"], local.list_bucket["documents"], local.read_objects["documents"], local.use_data_key]
    # Airflow verifies manifests and keeps its task logs. It starts stages; it does not write what they write. Its connections
    # may be kept in Secrets Manager (infra/kubernetes/helm/secrets-manager.yaml).
    airflow = [local.list_bucket["artifacts"], local.read_objects["artifacts"], local.list_bucket["logs"], local.write_objects["logs"], local.use_data_key, {
      Sid      = "ReadConnections"
      Effect   = "Allow"
      Action   = ["secretsmanager:GetSecretValue"]
      Resource = "arn:${local.partition}:secretsmanager:${var.region}:${local.account}:secret:${var.name}/connections/*"
    }]
    # It reads what it saves and deletes old backups; it cannot touch what it saves.
    backup = concat(
      flatten([for name in ["artifacts", "documents", "mlflow"] : [local.list_bucket[name], local.read_objects[name]]]),
      [local.list_bucket["backups"], local.write_objects["backups"], local.use_data_key],
    )
    mlflow     = [local.list_bucket["mlflow"], local.write_objects["mlflow"], local.use_data_key]
    assistant  = [local.list_bucket["artifacts"], local.read_objects["artifacts"], local.use_data_key]
    autoscaler = local.autoscaler_statements
    pod_logs = [{
      Sid      = "WriteStreamsOfOneGroup"
      Effect   = "Allow"
      Action   = ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
      Resource = "${aws_cloudwatch_log_group.main["pods"].arn}:*"
    }]
    vpc_cni = [] # by AWS' own policy: identities.tf
  }
}
