"""`python -m loadtests.campaign`: runs a campaign with Locust against a node, and judges it by the ledger."""
