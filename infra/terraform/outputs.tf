# What people look up. What is fed into Helm and Airflow is in outputs_helm.tf. No output is a secret.
output "cluster" {
  description = "Name and endpoint: aws eks update-kubeconfig --name NAME."
  value       = { name = aws_eks_cluster.main.name, endpoint = aws_eks_cluster.main.endpoint, version = aws_eks_cluster.main.version }
}

output "buckets" {
  description = "Names of the buckets by purpose."
  value       = { for name, bucket in aws_s3_bucket.main : name => bucket.bucket }
}

output "repositories" {
  description = "Where to push images, by name."
  value       = { for name, repository in aws_ecr_repository.main : name => repository.repository_url }
}

output "database" {
  description = "Where the database is, and the secret that holds its master password."
  value = {
    host       = aws_db_instance.main.address
    port       = aws_db_instance.main.port
    user       = aws_db_instance.main.username
    secret_arn = one(aws_db_instance.main.master_user_secret[*].secret_arn)
  }
}

output "roles" {
  description = "IAM role of each component."
  value       = { for name, role in aws_iam_role.component : name => role.arn }
}

output "gpu_groups" {
  description = "The node groups behind the GPU pools, and the order in which the autoscaler tries them (highest first)."
  value = { for name, group in local.gpu_groups : name => {
    capacity = group.capacity_type
    types    = var.gpu_pools[group.pool].instance_types
    gpus     = group.gpus
    nodes    = "${var.gpu_pools[group.pool].min_nodes} to ${var.gpu_pools[group.pool].max_nodes}"
    priority = group.priority
  } }
}
