# One role for each component, given to its service account by EKS Pod Identity. permissions.tf says what each may do.
variable "service_accounts" {
  description = "Service accounts (namespace/name) of each component. The stages' pods use the default one of their namespace."
  type = object({
    stages     = optional(list(string), ["millrace/default"])
    airflow    = optional(list(string), ["millrace/millrace-launcher", "millrace/airflow-api-server", "millrace/airflow-scheduler"])
    backup     = optional(list(string), ["millrace/millrace-backup"])
    mlflow     = optional(list(string), ["millrace/mlflow"])
    assistant  = optional(list(string), ["millrace/assistant", "millrace/vllm"])
    autoscaler = optional(list(string), ["kube-system/cluster-autoscaler"])
    pod_logs   = optional(list(string), ["amazon-cloudwatch/fluent-bit"])
  })
  default  = {}
  nullable = false

  validation {
    condition     = alltrue([for account in flatten(values(var.service_accounts)) : can(regex("^[a-z0-9-]+/[a-z0-9.-]+$", account))])
    error_message = "Expected service accounts as namespace/name."
  }

  validation {
    condition     = length(distinct(flatten(values(var.service_accounts)))) == length(flatten(values(var.service_accounts)))
    error_message = "Expected every service account once: Pod Identity gives it one role."
  }
}

locals {
  # The network plugin is associated by its add-on (addons.tf), the others below.
  accounts = merge(var.service_accounts, { vpc_cni = ["kube-system/aws-node"] })
  associations = merge([for component, accounts in var.service_accounts : {
    for account in accounts : account => { component = component, namespace = split("/", account)[0], name = split("/", account)[1] }
  }]...)
}

resource "aws_iam_role" "component" {
  for_each = local.permissions
  name     = "${var.name}-${replace(each.key, "_", "-")}"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "PodsOfThisCluster"
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = {
        StringEquals = {
          "aws:SourceAccount"                         = local.account
          "aws:RequestTag/eks-cluster-name"           = var.name
          "aws:RequestTag/kubernetes-namespace"       = distinct([for account in local.accounts[each.key] : split("/", account)[0]])
          "aws:RequestTag/kubernetes-service-account" = distinct([for account in local.accounts[each.key] : split("/", account)[1]])
        }
      }
    }]
  })
}

resource "aws_iam_role_policy" "component" {
  for_each = { for component, statements in local.permissions : component => statements if length(statements) > 0 }
  name     = "least"
  role     = aws_iam_role.component[each.key].id
  policy   = jsonencode({ Version = "2012-10-17", Statement = each.value })
}

# AWS keeps this list of the network plugin's calls; a copy of it here would grow old.
resource "aws_iam_role_policy_attachment" "vpc_cni" {
  role       = aws_iam_role.component["vpc_cni"].name
  policy_arn = "arn:${local.partition}:iam::aws:policy/AmazonEKS_CNI_Policy"
}

resource "aws_eks_pod_identity_association" "component" {
  for_each        = local.associations
  cluster_name    = aws_eks_cluster.main.name
  namespace       = each.value.namespace
  service_account = each.value.name
  role_arn        = aws_iam_role.component[each.value.component].arn
}
