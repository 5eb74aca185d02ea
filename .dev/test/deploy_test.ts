// What is said in several places is said the same in all of them: settings, permissions, versions, deploy/.
import { expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { RIGHTS, SETTINGS } from "../../operator.ts"
import project from "../../package.json" with { type: "json" }

type Container = {
  image: string
  envFrom: { configMapRef: { name: string } }[]
  ports: { name: string; containerPort: number }[]
  livenessProbe: { httpGet: object }
  readinessProbe: { httpGet: object }
  securityContext: object
  resources: Record<"requests" | "limits", { cpu: string; memory: string }>
}
type PodSpec = { containers: Container[]; securityContext: object; [field: string]: unknown }
type Manifest = {
  kind: string
  metadata: { name: string; labels?: Record<string, string> }
  spec: { replicas: number; strategy: object; template: { spec: PodSpec } }
  rules: { apiGroups: string[]; resources: string[]; verbs: string[] }[]
  automountServiceAccountToken: boolean
}
type Kustomization = {
  resources: string[]
  configMapGenerator: { name: string; envs: string[] }[]
  images: { name: string; newName: string; newTag: string }[]
}

const read = (file: string) => readFileSync(join(import.meta.dir, "../..", file), "utf8")
const parse = (file: string) => [Bun.YAML.parse(read(file))].flat() as Manifest[]
const kustomization = Bun.YAML.parse(read("deploy/kustomization.yaml")) as Kustomization
const deployment = parse("deploy/deployment.yaml")[0]!
const podSpec = deployment.spec.template.spec
const container = podSpec.containers[0]!
const own = SETTINGS.map(({ variable, default: value }) => `${variable}=${value}`)
const jobSelector = "flickr-immich-k8s-sync-operator/restart=true"

test("config.env has every setting with its default, except JOB_SELECTOR", () => {
  const lines = read("deploy/config.env").split("\n")
  const settings = lines.filter((line) => /^#?[A-Z_]+=/.test(line))
  expect(settings.filter((line) => !line.startsWith("#"))).toEqual([`JOB_SELECTOR=${jobSelector}`])
  const defaults = settings.map((line) => line.replace(/^#/, "").replace(jobSelector, ""))
  expect(defaults.toSorted()).toEqual(own.toSorted())
  // kustomize takes all that is neither blank nor a comment as a setting.
  expect(lines.filter((line) => line !== "" && !/^(#|[A-Z_]+=)/.test(line))).toEqual([])
})

test("rbac.yaml asks for exactly what the operator says that it does", () => {
  const role = parse("deploy/rbac.yaml").find(({ kind }) => kind === "Role")!
  const asked = role.rules.flatMap(({ apiGroups, resources, verbs }) =>
    apiGroups.flatMap((group) => resources.flatMap((resource) => verbs.map((verb) => `${verb} ${group}/${resource}`))),
  )
  expect(asked.toSorted()).toEqual(Object.keys(RIGHTS).toSorted())
})

test("one version and one licence everywhere", () => {
  const label = (name: string) =>
    new RegExp(`org\\.opencontainers\\.image\\.${name}="(.*)"`).exec(read("Dockerfile"))?.[1]
  expect(kustomization.images.map(({ name, newTag }) => [name, newTag])).toEqual([[container.image, project.version]])
  expect([label("version"), label("licenses"), label("description"), label("title")]).toEqual([
    project.version,
    project.license,
    project.description,
    project.name,
  ])
  expect(read("LICENSE")).toContain("Apache License\n                           Version 2.0")
})

test("the image compiles as the build does, and the build reads no file that .dockerignore keeps out", () => {
  const dockerfile = read("Dockerfile")
  for (const option of ["minify", "sourcemap", "bytecode", "no-compile-autoload-dotenv", "no-compile-autoload-bunfig"])
    expect(dockerfile).toContain(` --${option}`)
  expect(dockerfile).toContain(`oven/bun:${Bun.version} `)
  const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.*) \S+$/gm)].flatMap(([, files]) => files!.split(" "))
  expect(read(".dockerignore").trim().split("\n")).toEqual(["*", ...copied.map((file) => `!${file}`)])
  const imported = [...read("operator.ts").matchAll(/from "\.\/(.*?)"/g)].map(([, file]) => file!)
  expect(imported.filter((file) => !copied.includes(file))).toEqual([])
})

test("the kustomization makes no namespace, and nothing else than the operator", () => {
  const kinds = kustomization.resources.flatMap((file) => parse(`deploy/${file}`).map(({ kind }) => kind))
  expect(kinds.toSorted()).toEqual(["Deployment", "Role", "RoleBinding", "ServiceAccount"])
  expect(kustomization.configMapGenerator).toEqual([
    { name: container.envFrom[0]!.configMapRef.name, envs: ["config.env"] },
  ])
})

test("the Deployment runs one pod, which may do nothing to its node", () => {
  const { replicas, strategy } = deployment.spec
  expect([replicas, strategy]).toEqual([1, { type: "Recreate" }])
  expect(podSpec.securityContext).toEqual({
    runAsNonRoot: true,
    runAsUser: 65532,
    runAsGroup: 65532,
    seccompProfile: { type: "RuntimeDefault" },
  })
  expect(container.securityContext).toEqual({
    allowPrivilegeEscalation: false,
    readOnlyRootFilesystem: true,
    capabilities: { drop: ["ALL"] },
  })
  const account = parse("deploy/rbac.yaml").find(({ kind }) => kind === "ServiceAccount")!
  expect([podSpec.serviceAccountName, podSpec.automountServiceAccountToken]).toEqual([account.metadata.name, true])
  expect(account.automountServiceAccountToken).toBe(false)
  expect(Object.keys(container.resources)).toEqual(["requests", "limits"])
})

test("the probes ask the port that HEALTH_PORT has by default", () => {
  const [port] = container.ports
  expect(port?.containerPort).toBe(Number(SETTINGS.find(({ variable }) => variable === "HEALTH_PORT")?.default))
  const asked = [container.livenessProbe, container.readinessProbe].map(({ httpGet }) => httpGet)
  expect(asked).toEqual(["/livez", "/readyz"].map((path) => ({ path, port: port?.name })))
})

test("alerts.yaml scrapes that pod, and is not in the kustomization", () => {
  const [monitor, rules] = parse("deploy/monitoring/alerts.yaml") as unknown as { kind: string; spec: object }[]
  expect([monitor!.kind, rules!.kind]).toEqual(["PodMonitor", "PrometheusRule"])
  expect(kustomization.resources).not.toContain("alerts.yaml")
  const { selector, podMetricsEndpoints } = monitor!.spec as { selector: object; podMetricsEndpoints: object[] }
  expect(selector).toEqual((deployment.spec as unknown as { selector: object }).selector)
  expect(podMetricsEndpoints).toEqual([{ port: container.ports[0]?.name, honorLabels: true }])
})

test("the pod is given more time to end than the operator takes", () => {
  const graceMs = Number(/^const GRACE_MS = ([\d_]+)$/m.exec(read("operator.ts"))?.[1]?.replaceAll("_", ""))
  const givenMs = Number(podSpec.terminationGracePeriodSeconds) * 1_000
  expect(givenMs).toBeGreaterThanOrEqual(graceMs + 5_000)
  expect(givenMs).toBeLessThanOrEqual(graceMs + 15_000)
})

test("the example is a Job that config.env chooses", () => {
  const [claim, job] = parse("deploy/example-job.yaml")
  const [key, value] = jobSelector.split("=") as [string, string]
  expect([claim!.kind, job!.kind, job!.metadata.labels]).toEqual(["PersistentVolumeClaim", "Job", { [key]: value }])
})

test("every action of the workflows is pinned to a commit, with its version beside it", () => {
  for (const file of ["ci", "release"]) {
    const text = read(`.github/workflows/${file}.yml`)
    expect(Bun.YAML.parse(text)).toMatchObject({ name: file })
    for (const [, pin] of text.matchAll(/uses: .*@(.*)/g)) expect(pin).toMatch(/^[0-9a-f]{40} # v\d+\.\d+\.\d+$/)
    expect([...text.matchAll(/\bbun@([\d.]+)/g)].filter(([, version]) => version !== Bun.version)).toEqual([])
  }
})
