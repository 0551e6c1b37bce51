"""Clusters: what a run would cost, whether a machine is fit for it, Ray jobs and KubeRay manifests."""
