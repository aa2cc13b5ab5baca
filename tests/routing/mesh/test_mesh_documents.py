"""Files with App Mesh resources: what is read of them, and how what is not is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from routing.mesh.documents.reading import Read, read
from routing.mesh.model.resources import Mesh, Route, VirtualNode
from routing.mesh.problem import Severity

NODE = {
    "meshName": "shop",
    "virtualNodeName": "cart",
    "spec": {"listeners": [{"portMapping": {"port": 8080, "protocol": "http"}}]},
}
TEMPLATE = """
Parameters:
  Name: {Type: String, Default: shop}
  Zone: {Type: String}
  Ports: {Type: CommaDelimitedList, Default: "8080,8081"}
Conditions:
  Live: !Equals [!Ref Zone, live]
  Other: !Not [!Condition Live]
Mappings:
  Timeouts: {slow: {Value: 30}}
Resources:
  Mesh:
    Type: AWS::AppMesh::Mesh
    Properties:
      MeshName: !Ref Name
      Spec: {EgressFilter: {Type: !If [Live, DROP_ALL, ALLOW_ALL]}}
  Node:
    Type: AWS::AppMesh::VirtualNode
    Condition: Live
    Properties:
      MeshName: !GetAtt Mesh.MeshName
      VirtualNodeName: !Sub "${Name}-cart"
      Tags: [{Key: a, Value: b}]
      Spec:
        Listeners:
          - PortMapping: {Port: !Select [1, !Ref Ports], Protocol: http2}
            Timeout:
              HTTP2: {PerRequest: {Unit: s, Value: !FindInMap [Timeouts, slow, Value]}}
            TLS:
              Mode: STRICT
              Certificate: {File: {CertificateChain: /a.pem, PrivateKey: /a.key}}
        BackendDefaults: !If [Other, {}, !Ref "AWS::NoValue"]
        ServiceDiscovery:
          AWSCloudMap:
            NamespaceName: !Join [".", [cart, !GetAtt Namespace.Name]]
            ServiceName: !GetAtt Found.Name
  Dropped:
    Type: AWS::AppMesh::VirtualNode
    Condition: Other
    Properties: {MeshName: !Ref Unknown, Spec: {}}
  Namespace:
    Type: AWS::ServiceDiscovery::PrivateDnsNamespace
    Properties: {Name: !Sub ["${a}.local", {a: !Ref Name}]}
  Found:
    Type: AWS::ServiceDiscovery::Service
    Properties: {Name: cart}
"""


def reading(folder: Path, given: dict[str, str] | None = None, **files: object) -> Read:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        suffix = ".yaml" if isinstance(content, str) else ".json"
        (folder / f"{name}{suffix}").write_text(text)
    return read(folder, given or {})


def said(got: Read) -> list[str]:
    return [str(problem) for problem in got.problems]


def test_what_describe_prints_is_read(tmp_path: Path) -> None:
    metadata = {
        "arn": "arn:aws:appmesh:eu-central-1:123456789012:mesh/shop/virtualNode/cart",
        "createdAt": "2021-03-04T05:06:07.890000+00:00",
        "lastUpdatedAt": 1614834367.89,
        "meshOwner": "123456789012",
        "resourceOwner": "123456789012",
        "uid": "u",
        "version": 3,
    }
    described = {"virtualNode": {**NODE, "metadata": metadata, "status": {"status": "ACTIVE"}}}
    got = reading(tmp_path, described=described)
    assert not got.problems
    (found,) = got.found
    assert isinstance(found.resource, VirtualNode)
    assert found.resource.metadata is not None
    assert found.resource.metadata.version == 3
    assert found.file == "described.json"


def test_what_create_takes_is_read_one_or_a_list_in_json_or_yaml(tmp_path: Path) -> None:
    request = {**NODE, "clientToken": "t", "tags": [{"key": "a", "value": "b"}], "meshOwner": "123456789012"}
    text = "meshName: shop\n---\nmeshName: shop\nvirtualRouterName: r\nspec: {}\n"
    got = reading(tmp_path, request=[request], more=text)
    assert not got.problems
    assert [found.resource.path for found in got.found] == [
        "mesh/shop",
        "mesh/shop/virtualRouter/r",
        "mesh/shop/virtualNode/cart",
    ]


def test_a_template_is_evaluated(tmp_path: Path) -> None:
    got = reading(tmp_path, {"Zone": "live"}, stack=TEMPLATE)
    assert not said(got)
    mesh, node = (found.resource for found in got.found)
    assert isinstance(mesh, Mesh)
    assert mesh.spec.egress_filter is not None
    assert mesh.spec.egress_filter.type == "DROP_ALL"
    assert isinstance(node, VirtualNode)
    assert node.path == "mesh/shop/virtualNode/shop-cart"
    assert node.spec.listeners is not None
    (listener,) = node.spec.listeners
    assert listener.port_mapping.port == 8081
    assert listener.timeout is not None
    assert listener.timeout.http2 is not None
    assert listener.tls is not None
    assert node.spec.backend_defaults is None
    discovery = node.spec.service_discovery
    assert discovery is not None
    assert discovery.aws_cloud_map is not None
    assert discovery.aws_cloud_map.namespace_name == "cart.shop.local"


def test_what_cannot_be_decided_is_named_by_resource_and_field(tmp_path: Path) -> None:
    got = reading(tmp_path, stack=TEMPLATE)
    assert said(got) == [
        "error: stack.yaml Mesh Spec.EgressFilter.Type: parameter Zone has no value; give Zone=VALUE",
        "error: stack.yaml Node Condition: parameter Zone has no value; give Zone=VALUE",
        "error: stack.yaml Dropped Condition: parameter Zone has no value; give Zone=VALUE",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            "!GetAtt Balancer.DNSName",
            "Balancer.DNSName is known only to its stack; give Balancer.DNSName=VALUE",
        ),
        ("!Ref Balancer", "what Balancer is called is known only to its stack; give Balancer=VALUE"),
        ("!GetAtt Gone.Name", "there is no resource Gone"),
        ("!Ref Gone", "there is no Gone: no parameter and no resource; or give Gone=VALUE"),
        ("!ImportValue exported", "exported is exported by another stack; give exported=VALUE"),
        ("!Join [a]", "Fn::Join is not written as it must be"),
        ("!Select [7, [a]]", "Fn::Select is not written as it must be"),
        ("!FindInMap [M, a, b]", "the map M has no a, b"),
        ("!If [Gone, a, b]", "there is no condition Gone"),
        (
            "!Ref AWS::Region",
            "there is no AWS::Region: no parameter and no resource; or give AWS::Region=VALUE",
        ),
    ],
)
def test_what_only_a_stack_knows_is_asked_for(tmp_path: Path, value: str, text: str) -> None:
    template = f"""
Resources:
  Balancer: {{Type: AWS::ElasticLoadBalancingV2::LoadBalancer}}
  Node:
    Type: AWS::AppMesh::VirtualNode
    Properties:
      MeshName: shop
      Spec: {{ServiceDiscovery: {{DNS: {{Hostname: {value}}}}}}}
"""
    got = reading(tmp_path, stack=template)
    assert said(got) == [f"error: stack.yaml Node Spec.ServiceDiscovery.DNS.Hostname: {text}"]


def test_what_only_a_stack_knows_can_be_given(tmp_path: Path) -> None:
    template = """
Resources:
  Balancer: {Type: AWS::ElasticLoadBalancingV2::LoadBalancer}
  Node:
    Type: AWS::AppMesh::VirtualNode
    Properties:
      MeshName: shop
      Spec: {ServiceDiscovery: {DNS: {Hostname: !GetAtt Balancer.DNSName}}}
"""
    got = reading(tmp_path, {"Balancer.DNSName": "lb.example.com"}, stack=template)
    assert not said(got)
    (found,) = got.found
    assert found.resource.path == "mesh/shop/virtualNode/Node"


def test_a_circle_ends(tmp_path: Path) -> None:
    template = """
Conditions: {A: !Condition B, B: !Condition A}
Resources:
  X: {Type: "AWS::AppMesh::Mesh", Properties: {MeshName: !GetAtt Y.MeshName}}
  Y: {Type: "AWS::AppMesh::Mesh", Properties: {MeshName: !GetAtt X.MeshName}}
  Z: {Type: "AWS::AppMesh::Mesh", Condition: A, Properties: {MeshName: z}}
"""
    got = reading(tmp_path, stack=template)
    assert len(got.problems) == 3
    assert all("circle" in problem.text for problem in got.problems)


def test_a_ref_to_a_mesh_resource_is_its_arn(tmp_path: Path) -> None:
    template = """
Resources:
  Mesh: {Type: "AWS::AppMesh::Mesh", Properties: {MeshName: shop}}
  N: {Type: "AWS::AppMesh::VirtualNode", Properties: {MeshName: shop, VirtualNodeName: !Ref Mesh, Spec: {}}}
"""
    got = reading(tmp_path, {"AWS::Region": "eu-west-1", "AWS::AccountId": "123456789012"}, stack=template)
    assert not said(got)
    node = got.found[1].resource
    assert isinstance(node, VirtualNode)
    assert node.virtual_node_name == "arn:aws:appmesh:eu-west-1:123456789012:mesh/shop"


def test_a_wrong_field_is_named_by_its_path(tmp_path: Path) -> None:
    wrong = {**NODE, "spec": {"listeners": [{"portMapping": {"port": 0, "protocol": "http"}}]}}
    template = (
        'Resources: {N: {Type: "AWS::AppMesh::VirtualNode", Properties: {MeshName: m, Spec: {Listener: []}}}}'
    )
    got = reading(tmp_path, bad=wrong, stack=template)
    assert said(got) == [
        "error: bad.json mesh/shop/virtualNode/cart spec.listeners[0].portMapping.port: Expected `int` >= 1",
        "error: stack.yaml mesh/m/virtualNode/N spec: Object contains unknown field `Listener`",
    ]


@pytest.mark.parametrize(
    ("document", "text", "severity"),
    [
        ("a: [", "is not YAML", Severity.ERROR),
        ("a: 1\na: 2", "'a' is there twice", Severity.ERROR),
        ("x: &x [1]\ny: [" + "*x," * 2000 + "]", "more than 1000 aliases", Severity.ERROR),
        ("a: !!python/object:os.system x", "is not YAML", Severity.ERROR),
        ("a: " + "[" * 5000, "is nested too deep", Severity.ERROR),
        ("apiVersion: v1", "has no App Mesh resource", Severity.WARNING),
        (
            "apiVersion: appmesh.k8s.aws/v1beta2\nkind: Mesh",
            "of Kubernetes is not supported",
            Severity.UNSUPPORTED,
        ),
        ("spec: {listeners: []}", "a spec without names", Severity.UNSUPPORTED),
        ("virtualNodes: []", "a list of virtualNodes has no spec: describe each", Severity.UNSUPPORTED),
        ("Transform: T\nResources: {}", "T is not applied", Severity.UNSUPPORTED),
        (
            "Resources: {S: {Type: 'AWS::CloudFormation::Stack'}}",
            "a nested stack is not read",
            Severity.ERROR,
        ),
        ("Resources: {S: {Type: 'AWS::AppMesh::Mash'}}", "there is no AWS::AppMesh::Mash", Severity.ERROR),
    ],
)
def test_what_is_not_understood_is_named(
    tmp_path: Path, document: str, text: str, severity: Severity
) -> None:
    got = reading(tmp_path, it=document)
    assert not got.found
    (problem,) = got.problems
    assert problem.file == "it.yaml"
    assert text in problem.text
    assert problem.severity is severity


def test_hidden_folders_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in (".git", "node_modules", "deep"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_text(json.dumps(NODE))
    (tmp_path / "README.md").write_text("no")
    got = read(tmp_path, {})
    assert [found.file for found in got.found] == ["deep/a.json"]
    assert not got.problems
    assert not read(tmp_path / "deep" / "a.json", {}).problems
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "gone", {})


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, {}).problems
    assert "has no App Mesh resource" in problem.text
    assert problem.severity is Severity.ERROR


def test_a_date_stays_text(tmp_path: Path) -> None:
    got = reading(tmp_path, it="meshName: 2021-01-02\nspec: {}\n")
    assert got.found[0].resource.mesh_name == "2021-01-02"


def test_numbers_of_a_template_may_be_text(tmp_path: Path) -> None:
    template = """
Resources:
  R:
    Type: AWS::AppMesh::Route
    Properties:
      MeshName: m
      VirtualRouterName: r
      Spec:
        Priority: "7"
        GrpcRoute:
          Match: {ServiceName: s, Metadata: [{Name: a, Invert: "true"}]}
          Action: {WeightedTargets: [{VirtualNode: n, Weight: "1"}]}
"""
    got = reading(tmp_path, stack=template)
    assert not said(got)
    route = got.found[0].resource
    assert isinstance(route, Route)
    assert route.spec.priority == 7
