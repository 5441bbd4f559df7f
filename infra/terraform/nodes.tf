# What all nodes have in common: Bottlerocket (no shell, no package manager, read-only root), an instance role that can
# join the cluster and pull images, no metadata for pods. The kinds of nodes are in cpu_pool.tf and gpu_pools.tf.
locals {
  # Bottlerocket has two disks: the system's, and the one with images, logs and scratch volumes.
  system_disk = "/dev/xvda"
  data_disk   = "/dev/xvdb"

  node_policies = ["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"]
}

resource "aws_iam_role" "node" {
  name = "${var.name}-node"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Instances"
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each   = toset(local.node_policies)
  role       = aws_iam_role.node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.key}"
}
