# The image registry: scanned at every push, tags that never move (the launcher names images by digest anyway).
variable "repositories" {
  description = "Image repositories: below the installation's name."
  type        = set(string)
  default     = ["airflow", "mlflow", "stage"]
  nullable    = false
}

resource "aws_ecr_repository" "main" {
  for_each             = var.repositories
  name                 = "${var.name}/${each.key}"
  image_tag_mutability = "IMMUTABLE"
  force_delete         = !var.deletion_protection

  image_scanning_configuration {
    scan_on_push = true
  }

  encryption_configuration {
    encryption_type = "KMS"
    kms_key         = aws_kms_key.main["data"].arn
  }
}

# Images without a tag only: a release may name the digest of any image that was ever tagged.
resource "aws_ecr_lifecycle_policy" "main" {
  for_each   = var.repositories
  repository = aws_ecr_repository.main[each.key].name
  policy = jsonencode({
    rules = [{
      rulePriority = 1
      description  = "layers of builds that were never tagged"
      selection    = { tagStatus = "untagged", countType = "sinceImagePushed", countUnit = "days", countNumber = 14 }
      action       = { type = "expire" }
    }]
  })
}
