# Text to be written to files: terraform output -raw NAME > FILE. The runbook of the first deployment uses each.
locals {
  whole_gpu_pools = { for name, pool in var.gpu_pools : name => pool if pool.sharing == null }

  airflow_connections = {
    aws_default        = jsonencode({ conn_type = "aws", extra = { region_name = var.region } }) # no key: Pod Identity
    kubernetes_default = jsonencode({ conn_type = "kubernetes", extra = { in_cluster = true, namespace = "millrace" } })
  }

  # For the secret millrace-stage; the runbook adds what is secret (database URL) and what is yours (models, documents).
  stage_env = {
    AWS_DEFAULT_REGION      = var.region
    AWS_REGION              = var.region
    MILLRACE_GPUS_PER_NODE  = max(1, [for pool in local.whole_gpu_pools : pool.gpus_per_node]...)
    MILLRACE_GPU_POOL_LABEL = "nvidia.com/gpu.present=true"
    MILLRACE_LAUNCHER       = "kubernetes"
    MILLRACE_S3_BUCKET      = aws_s3_bucket.main["artifacts"].bucket
  }
}

output "stage_env" {
  description = "The part of stage.env that follows from the infrastructure."
  value       = join("", [for name, value in local.stage_env : "${name}=${value}\n"])
}

output "airflow_connections" {
  description = "Airflow connections by id, as JSON: airflow connections add ID --conn-json JSON."
  value       = local.airflow_connections
}

output "airflow_helm_values" {
  description = "Values for the official chart of Airflow, after infra/kubernetes/helm/airflow.yaml: what follows from the infrastructure."
  value = yamlencode({
    images = { airflow = { repository = try(aws_ecr_repository.main["airflow"].repository_url, "") } }
    env = concat(
      [for name, value in local.stage_env : { name = name, value = tostring(value) }],
      [for id, json in local.airflow_connections : { name = "AIRFLOW_CONN_${upper(id)}", value = json }],
    )
    config = {
      logging = {
        remote_log_conn_id     = "aws_default"
        remote_base_log_folder = "s3://${aws_s3_bucket.main["logs"].bucket}/airflow"
      }
    }
  })
}

output "mlflow_artifacts" {
  description = "Where MLflow keeps its artifacts: mlflow server --artifacts-destination."
  value       = "s3://${aws_s3_bucket.main["mlflow"].bucket}/"
}

output "autoscaler_helm_values" {
  description = "Values for the chart cluster-autoscaler, namespace kube-system. The groups of EKS are called eks-NAME-UUID."
  value = yamlencode({
    cloudProvider = "aws"
    awsRegion     = var.region
    autoDiscovery = { clusterName = var.name }
    rbac          = { serviceAccount = { name = "cluster-autoscaler" } }
    extraArgs = {
      expander                      = "priority"
      max-node-provision-time       = "15m" # then spot counts as having none, and the next group is tried
      scale-down-unneeded-time      = "10m"
      skip-nodes-with-local-storage = "false" # every stage has scratch volumes
    }
    expanderPriorities = { for priority in distinct(concat([1], values(local.gpu_groups)[*].priority)) : tostring(priority) => (
      priority == 1 ? [".*"] : [for name, group in local.gpu_groups : "^eks-${var.name}-${name}-[0-9a-f]{8}-.*" if group.priority == priority]
    ) }
  })
}

output "pod_logs_helm_values" {
  description = "Values for the chart aws-for-fluent-bit, namespace amazon-cloudwatch."
  value = yamlencode({
    serviceAccount = { create = true, name = "fluent-bit" }
    cloudWatchLogs = { enabled = true, region = var.region, logGroupName = local.log_groups.pods, autoCreateGroup = false }
  })
}
