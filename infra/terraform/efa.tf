# EFA needs a security group that lets everything through between its own members, in both directions.
resource "aws_security_group" "efa" {
  count       = anytrue([for pool in var.gpu_pools : pool.efa_interfaces > 0]) ? 1 : 0
  name        = "${var.name}-efa"
  description = "Everything between the EFA interfaces of the GPU nodes"
  vpc_id      = aws_vpc.main.id
  tags        = { Name = "${var.name}-efa" }
}

resource "aws_vpc_security_group_ingress_rule" "efa" {
  count                        = length(aws_security_group.efa)
  security_group_id            = aws_security_group.efa[0].id
  referenced_security_group_id = aws_security_group.efa[0].id
  description                  = "From the other GPU nodes"
  ip_protocol                  = "-1"
  tags                         = { Name = "${var.name}-efa" }
}

resource "aws_vpc_security_group_egress_rule" "efa" {
  count                        = length(aws_security_group.efa)
  security_group_id            = aws_security_group.efa[0].id
  referenced_security_group_id = aws_security_group.efa[0].id
  description                  = "To the other GPU nodes"
  ip_protocol                  = "-1"
  tags                         = { Name = "${var.name}-efa" }
}
