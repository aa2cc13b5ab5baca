"""Templates as teams have them: each runs, or what is not supported is named, and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands.mesh import app
from routing.mesh.documents.reading import read
from routing.mesh.meshes import meshes_of
from tests.support.mesh_rig import validated

pytestmark = [pytest.mark.end_to_end]
TAIL = """
  Color:
    Type: AWS::AppMesh::VirtualNode
    Properties:
      MeshName: !GetAtt Mesh.MeshName
      VirtualNodeName: color-vn
      Spec:
        Listeners:
          - PortMapping: {Port: !Ref Port, Protocol: http}
            HealthCheck:
              Protocol: http
              Path: /ping
              HealthyThreshold: 2
              UnhealthyThreshold: 3
              TimeoutMillis: 2000
              IntervalMillis: 5000
        ServiceDiscovery: {DNS: {Hostname: !Sub "color.${Project}.local"}}
  Service:
    Type: AWS::AppMesh::VirtualService
    DependsOn: [Color]
    Properties:
      MeshName: !GetAtt Mesh.MeshName
      VirtualServiceName: !Sub "color.${Project}.local"
      Spec: {Provider: {VirtualNode: {VirtualNodeName: !GetAtt Color.VirtualNodeName}}}
"""
HEAD = """
Description: >
  A mesh among the resources of a stack.
Parameters:
  Project: {Type: String, Description: Joins all stacks}
  Port: {Type: Number, Default: 8080}
Resources:
  Mesh:
    Type: AWS::AppMesh::Mesh
    Properties: {MeshName: !Sub "${Project}-mesh", Spec: {EgressFilter: {Type: DROP_ALL}}}
  Vpc: {Type: AWS::EC2::VPC, Properties: {CidrBlock: 10.0.0.0/16}}
  Subnet:
    Type: AWS::EC2::Subnet
    Properties: {VpcId: !Ref Vpc, AvailabilityZone: !Select [0, !GetAZs ""]}
  Balancer:
    Type: AWS::ElasticLoadBalancingV2::LoadBalancer
    Properties: {Subnets: [{"Fn::ImportValue": !Sub "${Project}:Subnet1"}]}
"""
GATEWAY = """
  Gateway:
    Type: AWS::AppMesh::VirtualGateway
    Properties:
      MeshName: !GetAtt Mesh.MeshName
      VirtualGatewayName: color_gateway
      Spec:
        BackendDefaults: {ClientPolicy: {}}
        Listeners: [{PortMapping: {Port: 9080, Protocol: http}}]
  GatewayRoute:
    Type: AWS::AppMesh::GatewayRoute
    DependsOn: [Gateway, Service]
    Properties:
      MeshName: !GetAtt Mesh.MeshName
      VirtualGatewayName: !GetAtt Gateway.VirtualGatewayName
      GatewayRouteName: color-route
      Spec:
        HttpRoute:
          Match: {Prefix: /color}
          Action: {Target: {VirtualService: {VirtualServiceName: !GetAtt Service.VirtualServiceName}}}
"""
CLOUD_MAP = """
  Registry:
    Type: AWS::ServiceDiscovery::Service
    Properties: {Name: stock, DnsConfig: {NamespaceId: !GetAtt Namespace.Id}}
  Namespace:
    Type: AWS::ServiceDiscovery::PrivateDnsNamespace
    Properties: {Name: !Sub "${Project}.pvt", Vpc: !Ref Vpc}
  Stock:
    Type: AWS::AppMesh::VirtualNode
    Properties:
      MeshName: !GetAtt Mesh.MeshName
      VirtualNodeName: stock-vn
      Spec:
        Backends: [{VirtualService: {VirtualServiceName: !GetAtt Service.VirtualServiceName}}]
        Listeners: [{PortMapping: {Port: !Ref Port, Protocol: grpc}}]
        ServiceDiscovery:
          AWSCloudMap:
            NamespaceName: !Sub "${Project}.pvt"
            ServiceName: !GetAtt Registry.Name
            IpPreference: IPv6_PREFERRED
            Attributes: [{Key: ECS_TASK_DEFINITION_FAMILY, Value: !Join ["-", [!Ref Project, stock]]}]
"""
EXTERNAL = """
  External:
    Type: AWS::AppMesh::VirtualNode
    Properties:
      MeshName: !GetAtt Mesh.MeshName
      VirtualNodeName: external
      Spec:
        Listeners: [{PortMapping: {Port: 443, Protocol: tcp}}]
        ServiceDiscovery: {DNS: {Hostname: example.com, IpPreference: IPv4_ONLY}}
  ExternalService:
    Type: AWS::AppMesh::VirtualService
    Properties:
      MeshName: !GetAtt Mesh.MeshName
      VirtualServiceName: example.com
      Spec: {Provider: {VirtualNode: {VirtualNodeName: !GetAtt External.VirtualNodeName}}}
"""
ACM = """
  Secret:
    Type: AWS::AppMesh::VirtualNode
    Properties:
      MeshName: !GetAtt Mesh.MeshName
      VirtualNodeName: secret-vn
      Spec:
        Listeners:
          - PortMapping: {Port: 443, Protocol: http}
            TLS: {Mode: STRICT, Certificate: {ACM: {CertificateArn: !Ref Certificate}}}
        ServiceDiscovery: {DNS: {Hostname: secret.local}}
"""
CERTIFICATE = (
    "  Certificate: {Type: AWS::CertificateManager::Certificate, Properties: {DomainName: secret.local}}\n"
)


def imported(folder: Path, name: str, text: str, *words: str) -> tuple[int, str]:
    source = folder / name
    source.write_text(text)
    said = CliRunner().invoke(app, ["import", str(source), str(folder / "out"), *words])
    return said.exit_code, said.stdout + said.stderr


@pytest.mark.parametrize(
    "template",
    [
        HEAD + TAIL,
        HEAD + TAIL + GATEWAY,
        HEAD + TAIL + CLOUD_MAP,
        HEAD + TAIL + EXTERNAL,
        HEAD + TAIL + GATEWAY + CLOUD_MAP,
    ],
    ids=["a node", "a gateway", "Cloud Map", "external", "all"],
)
def test_a_template_runs(tmp_path: Path, template: str) -> None:
    code, said = imported(tmp_path, "stack.yaml", template, "--parameter", "Project=demo")
    assert code == 0, said
    out = tmp_path / "out"
    assert CliRunner().invoke(app, ["check", str(out)]).exit_code == 0
    (mesh,) = meshes_of(read(out, {})).snapshots.values()
    endpoints = tmp_path / "endpoints.json"
    endpoints.write_text(json.dumps({name: ["10.0.0.1"] for name in mesh.nodes if name == "stock-vn"}))
    for name in [*mesh.nodes, *mesh.gateways]:
        made = CliRunner().invoke(app, ["export", str(out), "--node", name, "--endpoints", str(endpoints)])
        assert made.exit_code == 0, made.output
        config = tmp_path / "envoy.json"
        config.write_text(made.stdout)
        validated(config)


@pytest.mark.parametrize(
    ("name", "text", "code", "named"),
    [
        ("stack.yaml", HEAD + TAIL, 1, ["Mesh", "Project"]),
        (
            "stack.yaml",
            HEAD + TAIL + ACM + CERTIFICATE,
            1,
            ["Secret", "Certificate"],
        ),
        (
            "kubernetes.yaml",
            "apiVersion: appmesh.k8s.aws/v1beta2\nkind: VirtualNode\nmetadata: {name: ui}\nspec: {}\n",
            3,
            ["ui", "of Kubernetes is not supported"],
        ),
        (
            "node.json",
            '{"virtualNodeName": "color-vn", "spec": {"serviceDiscovery": {"dns": {"serviceName": "x"}}}}',
            1,
            ["spec.serviceDiscovery.dns: Object contains unknown field `serviceName`"],
        ),
        ("route.json", '{"spec": {"httpRoute": {}}}', 3, ["a spec without names", "add meshName"]),
        (
            "nested.yaml",
            "Resources: {Mesh: {Type: AWS::CloudFormation::Stack}}",
            1,
            ["a nested stack is not read"],
        ),
    ],
    ids=["a parameter", "a certificate of ACM", "Kubernetes", "an early API", "no names", "a nested stack"],
)
def test_what_does_not_run_is_named(
    tmp_path: Path, name: str, text: str, code: int, named: list[str]
) -> None:
    words = ["--parameter", "Project=demo"] if "Certificate" in text else []
    found, said = imported(tmp_path, name, text, *words)
    assert found == code, said
    for each in [name, *named]:
        assert each in said


def test_a_mesh_of_another_stack_is_taken_as_it_is_without_a_spec(tmp_path: Path) -> None:
    text = (HEAD + TAIL).replace("AWS::AppMesh::Mesh\n", "AWS::CloudFormation::WaitConditionHandle\n")
    words = ["--parameter", "Project=demo", "--parameter", "Mesh.MeshName=elsewhere"]
    code, said = imported(tmp_path, "stack.yaml", text, *words)
    assert code == 0, said
    assert "warning: mesh/elsewhere: is not there: it is taken for one of which nothing is said" in said
    assert json.loads((tmp_path / "out/elsewhere/mesh.json").read_text()) == {"meshName": "elsewhere"}
    assert CliRunner().invoke(app, ["check", str(tmp_path / "out")]).exit_code == 0
    checked = CliRunner().invoke(app, ["check", str(tmp_path / "stack.yaml"), *words])
    assert checked.exit_code == 1
    assert 'If others have it: {"meshName":"elsewhere","spec":{}} in a file' in checked.stdout


def test_what_another_stack_exports_is_given(tmp_path: Path) -> None:
    text = (HEAD + TAIL).replace('!Sub "color.${Project}.local"}}\n', '!ImportValue "Names:Color"}}\n')
    assert text != HEAD + TAIL
    words = ["--parameter", "Project=demo"]
    code, said = imported(tmp_path, "stack.yaml", text, *words)
    assert (code, "Names:Color is exported by another stack; give Names:Color=VALUE" in said) == (1, True), (
        said
    )
    assert imported(tmp_path, "stack.yaml", text, *words, "--parameter", "Names:Color=color.demo")[0] == 0


def test_a_certificate_of_acm_is_named_where_it_is(tmp_path: Path) -> None:
    words = [
        "--parameter",
        "Project=demo",
        "--parameter",
        "Certificate=arn:aws:acm:eu-central-1:0:certificate/x",
    ]
    code, said = imported(tmp_path, "stack.yaml", HEAD + TAIL + ACM + CERTIFICATE, *words)
    assert code == 3, said
    assert "mesh/demo-mesh/virtualNode/secret-vn spec.listeners[0].tls.certificate.acm" in said
    assert (tmp_path / "out/demo-mesh/virtualNode/secret-vn.json").exists()
