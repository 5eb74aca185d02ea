// The checks of the embedded API server. With CONFORMANCE_KUBECONFIG they run against that cluster in its place (in a namespace
// of their own; its node needs the image docker.io/local/busybox:1), so that the embedded one is judged by a real one.
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test"
import { KubeConfig } from "@kubernetes/client-node"
import { type ApiServer, newAuthority, startApiServer } from "./http.ts"
import { type Attempt, Model, type Rule, SCRIPT } from "./model.ts"
import { OLD_ROLE } from "./roles.ts"

// biome-ignore lint/suspicious/noExplicitAny: a body is whatever the server says
type Any = Record<string, any>
const real = process.env.CONFORMANCE_KUBECONFIG
setDefaultTimeout(30_000)
const ns = `conformance-${Date.now().toString(36)}`
let server: ApiServer
let url = ""
let tls: Bun.TLSOptions = {}
const tokens: Record<string, string> = {}

interface Reply {
  status: number
  body: Any
  headers: Headers
}
async function call(
  method: string,
  path: string,
  body?: unknown,
  { type = "application/json", user = "", accept = "" } = {},
): Promise<Reply> {
  const token = user ? tokens[user] : real ? undefined : "admin"
  const headers = {
    "content-type": type,
    ...(accept && { accept }),
    ...(token && { authorization: `Bearer ${token}` }),
  }
  const init = {
    method,
    headers,
    tls: user ? { ca: tls.ca } : tls,
    ...(body !== undefined && { body: JSON.stringify(body) }),
  }
  const res = await fetch(url + path, init as RequestInit)
  const text = await res.text()
  return {
    status: res.status,
    headers: res.headers,
    body: res.headers.get("content-type")?.includes("json") ? JSON.parse(text) : text,
  }
}
const jobsOf = (namespace: string) => `/apis/batch/v1/namespaces/${namespace}/jobs`
const JOBS = jobsOf(ns)
const PODS = `/api/v1/namespaces/${ns}/pods`
const MERGE = { type: "application/merge-patch+json" }
const get = async (path: string) => (await call("GET", path)).body
const podsOf = async (job: string): Promise<Any[]> => (await get(`${PODS}?labelSelector=job-name%3D${job}`)).items
async function until<T>(what: string, look: () => Promise<T | undefined | false>): Promise<T> {
  for (const end = Date.now() + 25_000; Date.now() < end; await Bun.sleep(real ? 100 : 5)) {
    const seen = await look()
    if (seen) return seen
  }
  throw new Error(`never seen: ${what}`)
}
const has = (job: Any, type: string) => job.status?.conditions?.some((c: Any) => c.type === type && c.status === "True")
const reach = (name: string, type: string): Promise<Any> =>
  until(`${name} ${type}`, async () => {
    const job = await get(`${JOBS}/${name}`)
    return has(job, type) && job
  })
const gone = (path: string) => until(`${path} gone`, async () => (await call("GET", path)).status === 404)

/** A Job whose containers do the same by script and on a real node. */
interface Wanted {
  attempts?: Attempt[]
  spec?: Any
  pod?: Any
  metadata?: Any
}
function shell(name: string, attempt: Attempt | undefined): string[] {
  const { runMs, log = "", exitCode = 0 } = { runMs: attempt?.runMs, ...attempt?.containers?.[name] }
  const play = `printf '%s' '${log}'; sleep ${runMs === undefined ? 1000 : runMs / 1000}; exit ${exitCode}`
  return ["sh", "-c", `trap 'exit 143' TERM; ${runMs === undefined ? "sleep 1000 & wait" : play}`]
}
function jobOf(name: string, { attempts, spec, pod, metadata }: Wanted = {}): Any {
  const container = (n: string) => ({
    name: n,
    image: "docker.io/local/busybox:1",
    imagePullPolicy: "Never",
    command: shell(n, attempts?.[0]),
  })
  const template = {
    metadata: { ...(attempts && { annotations: { [SCRIPT]: JSON.stringify(attempts) } }) },
    spec: { restartPolicy: "Never", terminationGracePeriodSeconds: 5, containers: [container("main")], ...pod },
  }
  return { apiVersion: "batch/v1", kind: "Job", metadata: { name, ...metadata }, spec: { ...spec, template } }
}
const create = (name: string, wanted?: Wanted) => call("POST", JOBS, jobOf(name, wanted))
const suspended = (name: string, metadata: Any = {}) => create(name, { spec: { suspend: true }, metadata })

async function* lines(path: string): AsyncGenerator<Any> {
  const res = await fetch(url + path, { headers: real ? {} : { authorization: "Bearer admin" }, tls } as RequestInit)
  let rest = ""
  for await (const chunk of res.body as unknown as AsyncIterable<Uint8Array>) {
    const parts = (rest + new TextDecoder().decode(chunk)).split("\n")
    rest = parts.pop() ?? ""
    for (const line of parts) yield JSON.parse(line)
  }
}
/** The events of a watch from `since` on until one is `last`. */
async function watch(path: string, query: string, last: (e: Any) => boolean): Promise<Any[]> {
  const seen: Any[] = []
  for await (const event of lines(`${path}?watch=true&timeoutSeconds=25&${query}`)) {
    seen.push(event)
    if (last(event)) break
  }
  return seen
}
const now = async (path: string): Promise<string> => (await get(`${path}?limit=1`)).metadata.resourceVersion
const clean = (o: Any): Any => {
  const { managedFields: _, ...metadata } = o.metadata
  return { ...o, metadata }
}

/** A user with one Role in the namespace; answers its name. */
async function withRole(name: string, rules: Rule[]): Promise<string> {
  const user = `system:serviceaccount:${ns}:${name}`
  if (!real) {
    server.addUser(user, rules, { token: name, namespaces: [ns] })
    tokens[name] = name
    return user
  }
  const rbac = `/apis/rbac.authorization.k8s.io/v1/namespaces/${ns}`
  await call("POST", `/api/v1/namespaces/${ns}/serviceaccounts`, { metadata: { name } })
  await call("POST", `${rbac}/roles`, { metadata: { name }, rules })
  const subjects = [{ kind: "ServiceAccount", name, namespace: ns }]
  await call("POST", `${rbac}/rolebindings`, {
    metadata: { name },
    subjects,
    roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "Role", name },
  })
  const token = await call("POST", `/api/v1/namespaces/${ns}/serviceaccounts/${name}/token`, { spec: {} })
  tokens[name] = token.body.status.token
  await Bun.sleep(500)
  return user
}

beforeAll(async () => {
  if (real) {
    const kc = new KubeConfig()
    kc.loadFromFile(real)
    const [cluster, user] = [kc.getCurrentCluster()!, kc.getCurrentUser()!]
    const pem = (data: string | undefined) => Buffer.from(data ?? "", "base64").toString()
    url = cluster.server
    tls = { ca: pem(cluster.caData), cert: pem(user.certData), key: pem(user.keyData) }
  } else {
    server = await startApiServer()
    url = server.url
    tls = { ca: server.ca }
  }
  expect((await call("POST", "/api/v1/namespaces", { metadata: { name: ns } })).status).toBe(201)
  if (real)
    await until(
      "service account",
      async () => (await call("GET", `/api/v1/namespaces/${ns}/serviceaccounts/default`)).status === 200,
    )
})
afterAll(async () => {
  await call("DELETE", `/api/v1/namespaces/${ns}`)
  await server?.close()
})

describe("create", () => {
  test("a Job gets the server's defaults, selector and four labels, and its labels are the template's, the generated ones included", async () => {
    const given = jobOf("rich", {
      spec: { suspend: true },
      metadata: { annotations: { a: "1" }, finalizers: ["example.com/f"] },
      pod: {
        serviceAccountName: "robot",
        containers: [
          {
            name: "main",
            image: "example.com/app@sha256:7a5427db932d2a80bedab58b42b52049c595cf4545fa4b3510f77267a27882fc",
            ports: [{ containerPort: 80 }],
            env: [
              { name: "A", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
              { name: "B", value: "2" },
            ],
            resources: { limits: { memory: "32Mi" } },
            volumeMounts: [{ name: "s", mountPath: "/s" }],
          },
          { name: "side", image: "example.com/side" },
          { name: "third", image: "example.com:5000/third:1.0" },
        ],
        initContainers: [{ name: "init", image: "example.com/side:latest" }],
        volumes: [
          { name: "s", secret: { secretName: "s" } },
          { name: "e" },
          { name: "c", configMap: { name: "c" } },
          { name: "h", hostPath: { path: "/" } },
        ],
      },
    })
    const { status, body } = await call("POST", JOBS, given)
    expect(status).toBe(201)
    const { uid, creationTimestamp, resourceVersion } = body.metadata
    const labels = {
      "batch.kubernetes.io/controller-uid": uid,
      "batch.kubernetes.io/job-name": "rich",
      "controller-uid": uid,
      "job-name": "rich",
    }
    const container = (c: Any, imagePullPolicy: string) => ({
      ...c,
      resources: c.resources ?? {},
      terminationMessagePath: "/dev/termination-log",
      terminationMessagePolicy: "File",
      imagePullPolicy,
    })
    const pod = given.spec.template.spec
    const [main, side, third] = pod.containers
    const golden: Any = {
      kind: "Job",
      apiVersion: "batch/v1",
      metadata: { ...given.metadata, namespace: ns, uid, creationTimestamp, resourceVersion, generation: 1, labels },
      spec: {
        parallelism: 1,
        completions: 1,
        backoffLimit: 6,
        selector: { matchLabels: { "batch.kubernetes.io/controller-uid": uid } },
        manualSelector: false,
        completionMode: "NonIndexed",
        suspend: true,
        podReplacementPolicy: "TerminatingOrFailed",
        template: {
          metadata: { labels },
          spec: {
            ...pod,
            serviceAccount: "robot",
            dnsPolicy: "ClusterFirst",
            schedulerName: "default-scheduler",
            securityContext: {},
            initContainers: [container(pod.initContainers[0], "Always")],
            containers: [
              {
                ...container(main, "IfNotPresent"),
                ports: [{ containerPort: 80, protocol: "TCP" }],
                env: [
                  { name: "A", valueFrom: { fieldRef: { apiVersion: "v1", fieldPath: "metadata.name" } } },
                  main.env[1],
                ],
              },
              container(side, "Always"),
              container(third, "IfNotPresent"),
            ],
            volumes: [
              { name: "s", secret: { secretName: "s", defaultMode: 420 } },
              { name: "e", emptyDir: {} },
              { name: "c", configMap: { name: "c", defaultMode: 420 } },
              { name: "h", hostPath: { path: "/", type: "" } },
            ],
          },
        },
      },
      status: {},
    }
    expect(clean(body)).toEqual(golden)
    await call("PATCH", `${JOBS}/rich`, { metadata: { finalizers: null } }, MERGE)
  })

  test("labels of its own keep the generated ones out of metadata.labels; a generateName makes a name; status, uid and times given are ignored", async () => {
    const own = await create("own", { spec: { suspend: true }, metadata: { labels: { a: "b" } } })
    expect(own.body.metadata.labels).toEqual({ a: "b" })
    const made = await call("POST", JOBS, {
      ...jobOf("x", { spec: { suspend: true } }),
      metadata: { generateName: "gen-", uid: "x", creationTimestamp: "2020-01-01T00:00:00Z", generation: 7 },
      status: { failed: 3 },
    })
    expect(made.body.metadata).toMatchObject({ name: expect.stringMatching(/^gen-[a-z0-9]{5}$/), generation: 1 })
    expect(made.body.metadata.creationTimestamp).not.toMatch(/^2020/)
    expect(made.body.status).toEqual({})
  })

  test("a dry run answers 201 and stores nothing; an existing name is refused as AlreadyExists", async () => {
    const dry = await call("POST", `${JOBS}?dryRun=All`, jobOf("dry"))
    expect(dry.status).toBe(201)
    expect(dry.body.metadata.resourceVersion).toBeUndefined()
    expect((await call("GET", `${JOBS}/dry`)).status).toBe(404)
    await suspended("twice")
    const message = 'jobs.batch "twice" already exists'
    const details = { name: "twice", group: "batch", kind: "jobs" }
    const status = { kind: "Status", apiVersion: "v1", metadata: {}, status: "Failure" }
    expect((await suspended("twice")).body).toEqual({ ...status, message, reason: "AlreadyExists", details, code: 409 })
  })

  test("a namespace that is missing refuses a create with 404 and lists nothing; another namespace in the body is 400; a resourceVersion is 500", async () => {
    const missing = await call("POST", jobsOf("nowhere"), jobOf("a"))
    expect(missing).toMatchObject({ status: 404, body: { details: { name: "nowhere", kind: "namespaces" } } })
    expect(await call("GET", jobsOf("nowhere"))).toMatchObject({ status: 200, body: { items: [] } })
    expect(await call("POST", JOBS, jobOf("a", { metadata: { namespace: "other" } }))).toMatchObject({
      status: 400,
      body: { reason: "BadRequest" },
    })
    const versioned = await call("POST", JOBS, jobOf("a", { metadata: { resourceVersion: "5" } }))
    expect(versioned.body).toMatchObject({
      code: 500,
      message: "resourceVersion should not be set on objects to be created",
    })
  })

  const refusals: [string, (job: Any, other: Any) => void, string[]][] = [
    [
      "a selector without manualSelector",
      (j) => Object.assign(j.spec, { selector: { matchLabels: { a: "b" } } }),
      ["spec.selector", "spec.template.metadata.labels"],
    ],
    [
      "another Job's selector and labels",
      (j, other) => {
        j.spec.selector = other.spec.selector
        j.spec.template.metadata.labels = other.spec.template.metadata.labels
      },
      [
        "spec.template.metadata.labels[controller-uid]",
        "spec.template.metadata.labels[job-name]",
        "spec.template.metadata.labels[batch.kubernetes.io/controller-uid]",
        "spec.template.metadata.labels[batch.kubernetes.io/job-name]",
        "spec.selector",
      ],
    ],
    [
      "another Job's old labels alone",
      (j) => Object.assign(j.spec.template.metadata, { labels: { "controller-uid": "old", "job-name": "other" } }),
      ["spec.template.metadata.labels[controller-uid]", "spec.template.metadata.labels[job-name]"],
    ],
    [
      "manualSelector without a selector",
      (j) => Object.assign(j.spec, { manualSelector: true }),
      ["spec.selector", "spec.template.metadata.labels"],
    ],
    ["a name with capitals", (j) => Object.assign(j.metadata, { name: "Bad_Name" }), ["metadata.name"]],
    [
      "a name of 64 characters",
      (j) => Object.assign(j.metadata, { name: "a".repeat(64) }),
      ["spec.template.labels", "spec.template.labels"],
    ],
    ["no name", (j) => Object.assign(j, { metadata: {} }), ["metadata.name"]],
    [
      "no containers",
      (j) => Object.assign(j.spec.template.spec, { containers: [] }),
      ["spec.template.spec.containers"],
    ],
    [
      "restartPolicy Always",
      (j) => Object.assign(j.spec.template.spec, { restartPolicy: "Always" }),
      ["spec.template.spec.restartPolicy"],
    ],
    [
      "no template",
      (j) => Object.assign(j.spec, { template: undefined }),
      ["spec.template.spec.containers", "spec.template.spec.restartPolicy"],
    ],
    [
      "a container without image",
      (j) => Object.assign(j.spec.template.spec.containers[0], { image: undefined }),
      ["spec.template.spec.containers[0].image"],
    ],
    [
      "a podFailurePolicy with restartPolicy OnFailure",
      (j) => {
        j.spec.podFailurePolicy = { rules: [{ action: "Ignore", onExitCodes: { operator: "In", values: [4] } }] }
        j.spec.template.spec.restartPolicy = "OnFailure"
      },
      ["spec.template.spec.restartPolicy"],
    ],
    ["a negative backoffLimit", (j) => Object.assign(j.spec, { backoffLimit: -1 }), ["spec.backoffLimit"]],
    ["a bad label", (j) => Object.assign(j.metadata, { labels: { a: "b c" } }), ["metadata.labels"]],
  ]
  test.each(refusals)("%s is refused as Invalid, cause by cause", async (_, spoil, fields) => {
    const other = (await call("POST", `${JOBS}?dryRun=All`, jobOf("other"))).body
    const job = jobOf("spoilt", { spec: { suspend: true } })
    spoil(job, other)
    const { status, body } = await call("POST", JOBS, job)
    expect(status).toBe(422)
    expect(body.reason).toBe("Invalid")
    expect(body.details.causes.map((c: Any) => c.field)).toEqual(fields)
    for (const c of body.details.causes) expect(body.message).toContain(`${c.field}: ${c.message}`)
    expect(body.message.startsWith(`Job.batch "${job.metadata.name ?? ""}" is invalid: `)).toBe(true)
  })

  test("a full quota refuses every create, dry runs and existing names too, and a deletion makes room", async () => {
    const quota = `${ns}-quota`
    await call("POST", "/api/v1/namespaces", { metadata: { name: quota } })
    await call("POST", `/api/v1/namespaces/${quota}/resourcequotas`, {
      metadata: { name: "q" },
      spec: { hard: { "count/jobs.batch": "1" } },
    })
    if (real) await until("quota", async () => (await get(`/api/v1/namespaces/${quota}/resourcequotas/q`)).status.used)
    const make = (name: string, query = "") =>
      call("POST", jobsOf(quota) + query, jobOf(name, { spec: { suspend: true } }))
    expect((await make("a")).status).toBe(201)
    for (const refused of [await make("b"), await make("a"), await make("b", "?dryRun=All")]) {
      expect(refused.status).toBe(403)
      expect(refused.body.message).toMatch(
        /^jobs.batch ".*" is forbidden: exceeded quota: q, requested: count\/jobs.batch=1, used: count\/jobs.batch=1, limited/,
      )
    }
    await call("DELETE", `${jobsOf(quota)}/a`, { propagationPolicy: "Background" })
    await until("room", async () => (await make("c")).status === 201)
    await call("DELETE", `/api/v1/namespaces/${quota}`)
  })

  test("a terminating namespace refuses creates with cause NamespaceTerminating, then is gone", async () => {
    const dying = `${ns}-dying`
    await call("POST", "/api/v1/namespaces", { metadata: { name: dying } })
    await call(
      "POST",
      jobsOf(dying),
      jobOf("held", { spec: { suspend: true }, metadata: { finalizers: ["example.com/f"] } }),
    )
    expect((await call("DELETE", `/api/v1/namespaces/${dying}`)).body.status.phase).toBe("Terminating")
    const refused = await call("POST", jobsOf(dying), jobOf("b"))
    expect(refused).toMatchObject({
      status: 403,
      body: {
        reason: "Forbidden",
        details: { causes: [{ reason: "NamespaceTerminating", field: "metadata.namespace" }] },
      },
    })
    await call("PATCH", `${jobsOf(dying)}/held`, { metadata: { finalizers: null } }, MERGE)
    await gone(`/api/v1/namespaces/${dying}`)
  })
})

describe("change", () => {
  test("a stale or foreign update is a Conflict; the template is immutable; a change of metadata leaves the generation, one that changes nothing the resourceVersion", async () => {
    await suspended("edit")
    const job = await reach("edit", "Suspended")
    const put = (change: Any) =>
      call("PUT", `${JOBS}/edit`, { ...job, ...change, metadata: { ...job.metadata, ...change.metadata } })
    expect(await put({ metadata: { resourceVersion: "1" } })).toMatchObject({
      status: 409,
      body: { reason: "Conflict", details: { kind: "jobs" } },
    })
    expect(await put({ metadata: { uid: "d9607e19-f88f-11e6-a518-42010a800195" } })).toMatchObject({
      status: 409,
      body: { reason: "Conflict" },
    })
    const template = structuredClone(job.spec.template)
    template.spec.containers[0].image = "other"
    const fixed = await put({ spec: { ...job.spec, template } })
    expect(fixed).toMatchObject({
      status: 422,
      body: { details: { causes: [{ field: "spec.template", reason: "FieldValueInvalid" }] } },
    })
    expect(fixed.body.message).toEndWith("field is immutable")
    expect((await put({ spec: { ...job.spec, completions: 4 } })).body.details.causes[0].field).toBe("spec.completions")
    expect((await put({})).body.metadata.resourceVersion).toBe(job.metadata.resourceVersion)
    const noted = await put({ metadata: { annotations: { z: "1" } } })
    expect(noted.body.metadata).toMatchObject({ generation: 1, annotations: { z: "1" } })
    expect(Number(noted.body.metadata.resourceVersion)).toBeGreaterThan(Number(job.metadata.resourceVersion))
    const resumed = await call("PATCH", `${JOBS}/edit`, { spec: { parallelism: 0 } }, MERGE)
    expect(resumed.body.metadata.generation).toBe(2)
  })

  test("merge, strategic and JSON patches change annotations; null removes one; a stale resourceVersion, a failed test, a plain type are refused", async () => {
    await suspended("patched")
    const patch = (body: unknown, kind = "merge") =>
      call("PATCH", `${JOBS}/patched`, body, { type: `application/${kind}-patch+json` })
    expect((await patch({ metadata: { annotations: { a: "1", b: "2" } } })).body.metadata.annotations).toEqual({
      a: "1",
      b: "2",
    })
    expect((await patch({ metadata: { annotations: { a: null } } })).body.metadata.annotations).toEqual({ b: "2" })
    expect(
      (await patch([{ op: "add", path: "/metadata/annotations/x~1y", value: "3" }], "json")).body.metadata.annotations,
    ).toEqual({
      b: "2",
      "x/y": "3",
    })
    expect(
      (await patch({ metadata: { annotations: { d: "4" } } }, "strategic-merge")).body.metadata.annotations,
    ).toMatchObject({ d: "4" })
    expect(await patch([{ op: "test", path: "/metadata/annotations/b", value: "9" }], "json")).toMatchObject({
      status: 422,
      body: { reason: "Invalid" },
    })
    expect((await patch({ metadata: { resourceVersion: "1" } })).body.reason).toBe("Conflict")
    expect((await call("PATCH", `${JOBS}/patched`, {})).status).toBe(415)
    expect((await call("PATCH", `${JOBS}/nope`, {}, MERGE)).body.details).toEqual({
      name: "nope",
      group: "batch",
      kind: "jobs",
    })
  })

  test("ConfigMaps: a second create is AlreadyExists, a patch changes a key, one that changes nothing leaves the resourceVersion", async () => {
    const maps = `/api/v1/namespaces/${ns}/configmaps`
    const made = await call("POST", maps, { metadata: { name: "settings" }, data: { A: "1", B: "" } })
    expect([made.status, made.body.data]).toEqual([201, { A: "1", B: "" }])
    expect(await call("POST", maps, { metadata: { name: "settings" } })).toMatchObject({
      status: 409,
      body: { reason: "AlreadyExists" },
    })
    const { body } = await call("PATCH", `${maps}/settings`, { data: { A: "2" } }, MERGE)
    expect(body.data).toEqual({ A: "2", B: "" })
    const same = await call("PATCH", `${maps}/settings`, { data: { A: "2" } }, MERGE)
    expect(same.body.metadata.resourceVersion).toBe(body.metadata.resourceVersion)
    expect(await call("GET", `${maps}/none`)).toMatchObject({ status: 404, body: { reason: "NotFound" } })
  })

  test("a list of metadata alone has labels, annotations and nothing of the data, page by page, as the selector chooses", async () => {
    const maps = `/api/v1/namespaces/${ns}/configmaps`
    const made = (name: string, record?: string) => ({
      metadata: { name, ...(record && { labels: { record }, annotations: { note: name } }) },
    })
    for (const map of [made("r1", "yes"), made("r2", "yes"), made("r3")])
      await call("POST", maps, { ...map, immutable: true, data: { a: "b" } })
    const accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    // A server may promise more where nothing more matches: then the last page is empty.
    const items: Any[] = []
    for (let [next, pages] = ["", 0]; pages === 0 || next; pages++) {
      const { body } = await call("GET", `${maps}?labelSelector=record%3Dyes&limit=1&continue=${next}`, undefined, {
        accept,
      })
      expect([body.kind, body.apiVersion]).toEqual(["PartialObjectMetadataList", "meta.k8s.io/v1"])
      items.push(...body.items)
      next = body.metadata.continue ?? ""
    }
    expect(
      items.map((item) => [item.kind, item.metadata.name, item.metadata.labels, item.metadata.annotations, item.data]),
    ).toEqual([
      ["PartialObjectMetadata", "r1", { record: "yes" }, { note: "r1" }, undefined],
      ["PartialObjectMetadata", "r2", { record: "yes" }, { note: "r2" }, undefined],
    ])
  })

  test("an immutable ConfigMap keeps its data", async () => {
    const maps = `/api/v1/namespaces/${ns}/configmaps`
    await call("POST", maps, { metadata: { name: "cm" }, immutable: true, data: { a: "b" } })
    const { body } = await call("PATCH", `${maps}/cm`, { data: { a: "c" } }, MERGE)
    expect(body.message).toBe('ConfigMap "cm" is invalid: data: Forbidden: field is immutable when `immutable` is set')
    expect((await call("DELETE", `${maps}/cm`)).body).toMatchObject({
      status: "Success",
      details: { name: "cm", kind: "configmaps" },
    })
  })

  test("an Event of events.k8s.io takes a series by patch and is read as a core Event", async () => {
    const events = `/apis/events.k8s.io/v1/namespaces/${ns}/events`
    const eventTime = "2024-01-01T00:00:00.000000Z"
    const about = { kind: "Job", namespace: ns, name: "x", apiVersion: "batch/v1" }
    const made = await call("POST", events, {
      metadata: { name: "e" },
      regarding: about,
      reason: "Restarting",
      note: "m",
      type: "Normal",
      action: "Restart",
      reportingController: "a/b",
      reportingInstance: "c",
      eventTime,
    })
    expect(made).toMatchObject({ status: 201, body: { apiVersion: "events.k8s.io/v1", note: "m", regarding: about } })
    const series = { count: 2, lastObservedTime: eventTime }
    expect((await call("PATCH", `${events}/e`, { series }, MERGE)).body).toMatchObject({ note: "m", series })
    expect(await get(`/api/v1/namespaces/${ns}/events/e`)).toMatchObject({
      message: "m",
      involvedObject: about,
      reportingComponent: "a/b",
      series,
    })
    const elsewhere = await call("POST", `/api/v1/namespaces/${ns}/events`, {
      metadata: { name: "f" },
      involvedObject: { namespace: "default" },
    })
    expect(elsewhere.body.details.causes[0].field).toBe("involvedObject.namespace")
  })
})

describe("list and watch", () => {
  test("pages show one moment, whatever is deleted meanwhile", async () => {
    for (const n of ["page-a", "page-b", "page-c"]) await suspended(n, { labels: { set: "pages" } })
    const first = (await call("GET", `${JOBS}?limit=2`)).body
    expect(first.metadata.remainingItemCount).toBeGreaterThan(0)
    await call("DELETE", `${JOBS}/page-c`, { propagationPolicy: "Background" })
    const rest = (await call("GET", `${JOBS}?continue=${encodeURIComponent(first.metadata.continue)}`)).body
    const names = [...first.items, ...rest.items].map((j: Any) => j.metadata.name)
    expect(names).toEqual(names.toSorted())
    expect(names).toContain("page-c")
    expect(rest.metadata).toEqual({ resourceVersion: first.metadata.resourceVersion })
    expect(first.items[0].kind).toBeUndefined()
    expect((await get(`${JOBS}?limit=1&labelSelector=set%3Dpages`)).metadata.remainingItemCount).toBeUndefined()
    for (const q of ["continue=abc", "limit=x", "resourceVersion=abc", "fieldSelector=spec.foo%3D1"])
      expect(await call("GET", `${JOBS}?${q}`)).toMatchObject({ status: 400, body: { reason: "BadRequest" } })
  })

  const cases: [string, string[]][] = [
    ["x=1", ["l1"]],
    ["x==1", ["l1"]],
    ["x!=1,set=sel", ["l2", "l3"]],
    ["x in (1, 2)", ["l1", "l2"]],
    ["x notin (1),set=sel", ["l2", "l3"]],
    ["x,set=sel", ["l1", "l2"]],
    ["!x,set=sel", ["l3"]],
    ["x in (1,2),!y", ["l1"]],
    ["empty=", ["l3"]],
  ]
  test.each(cases)("the labelSelector %s finds %p", async (selector, names) => {
    await suspended("l1", { labels: { set: "sel", x: "1" } })
    await suspended("l2", { labels: { set: "sel", x: "2", y: "" } })
    await suspended("l3", { labels: { set: "sel", empty: "" } })
    const { items } = await get(`${JOBS}?labelSelector=${encodeURIComponent(selector)}`)
    expect(items.map((j: Any) => j.metadata.name)).toEqual(names)
    expect((await get(`${JOBS}?fieldSelector=metadata.name%3Dl2`)).items).toHaveLength(1)
  })

  test("a watch shows who enters and leaves its selection as ADDED and DELETED, the one leaving as it was", async () => {
    const rv = await now(JOBS)
    await suspended("mover", { labels: { stage: "a" } })
    const job = await reach("mover", "Suspended")
    for (const stage of ["b", "a"]) await call("PATCH", `${JOBS}/mover`, { metadata: { labels: { stage } } }, MERGE)
    await call("DELETE", `${JOBS}/mover`, { propagationPolicy: "Background" })
    let left = 2
    const seen = await watch(
      JOBS,
      `resourceVersion=${rv}&labelSelector=stage%3Da`,
      (e) => e.type === "DELETED" && --left === 0,
    )
    expect(seen.map((e) => e.type)).toEqual(["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"])
    expect(seen[0]!.object).toMatchObject({ kind: "Job", apiVersion: "batch/v1" })
    expect(seen[2]!.object.metadata.labels).toEqual({ stage: "a" })
    expect(Number(seen[2]!.object.metadata.resourceVersion)).toBeGreaterThan(Number(job.metadata.resourceVersion))
    const versions = seen.map((e) => Number(e.object.metadata.resourceVersion))
    expect(versions).toEqual(versions.toSorted((a, b) => a - b))
  })

  test("a watch ends after timeoutSeconds, two seconds after a bookmark; from resourceVersion 0 it begins with what is there", async () => {
    await suspended("here")
    const rv = await now(JOBS)
    const [first] = await watch(JOBS, "resourceVersion=0&fieldSelector=metadata.name%3Dhere", () => true)
    expect(first).toMatchObject({ type: "ADDED", object: { metadata: { name: "here" } } })
    const started = Date.now()
    const seen: Any[] = []
    const query = `watch=1&resourceVersion=${rv}&allowWatchBookmarks=true&timeoutSeconds=4&fieldSelector=metadata.name%3Dnobody`
    for await (const event of lines(`${JOBS}?${query}`)) seen.push({ ...event, at: Date.now() - started })
    expect(Date.now() - started).toBeWithin(3900, 5500)
    expect(seen).toMatchObject([{ type: "BOOKMARK", object: { kind: "Job", apiVersion: "batch/v1" } }])
    expect(seen[0]!.at).toBeWithin(1900, 3600)
    expect(Number(seen[0]!.object.metadata.resourceVersion)).toBeGreaterThanOrEqual(Number(rv))
    expect((await call("GET", `${JOBS}?watch=1&resourceVersion=abc`)).status).toBe(500)
  })
})

describe("delete", () => {
  const FOREGROUND = { propagationPolicy: "Foreground" }
  const BACKGROUND = { propagationPolicy: "Background" }
  const running = async (name: string): Promise<Any> => {
    await create(name)
    return until(`${name} runs`, async () => (await podsOf(name)).find((p) => p.status.phase === "Running"))
  }

  test("preconditions that do not hold are a Conflict, kind Job; nothing is deleted; an unknown policy is Invalid; an absent Job 404", async () => {
    await suspended("pre")
    const { metadata } = await reach("pre", "Suspended")
    const remove = (body: Any) => call("DELETE", `${JOBS}/pre`, body)
    const uid = await remove({ preconditions: { uid: "d9607e19-f88f-11e6-a518-42010a800195" } })
    expect(uid).toMatchObject({
      status: 409,
      body: { reason: "Conflict", details: { name: "pre", group: "batch", kind: "Job" } },
    })
    expect(uid.body.message).toContain(`does not match the UID in record (${metadata.uid})`)
    const stale = await remove({ preconditions: { uid: metadata.uid, resourceVersion: "1" } })
    expect(stale.body.message).toContain(
      `the ResourceVersion in the precondition (1) does not match the ResourceVersion in record (${metadata.resourceVersion})`,
    )
    expect((await remove({ propagationPolicy: "Nope" })).body).toMatchObject({
      code: 422,
      details: { kind: "DeleteOptions" },
    })
    expect(await get(`${JOBS}/pre`)).toMatchObject({ metadata })
    const done = await remove({
      ...BACKGROUND,
      preconditions: { uid: metadata.uid, resourceVersion: metadata.resourceVersion },
    })
    const details = { name: "pre", group: "batch", kind: "jobs", uid: metadata.uid }
    expect(done).toMatchObject({
      status: 200,
      body: { kind: "Status", apiVersion: "v1", metadata: {}, status: "Success", details },
    })
    expect((await remove(BACKGROUND)).status).toBe(404)
  })

  test("dryRun counts in the query of a DELETE without a body and is ignored beside one", async () => {
    await suspended("dryly")
    expect((await call("DELETE", `${JOBS}/dryly?dryRun=All&propagationPolicy=Background`)).status).toBe(200)
    expect((await call("GET", `${JOBS}/dryly`)).status).toBe(200)
    await call("DELETE", `${JOBS}/dryly?dryRun=All`, BACKGROUND)
    expect((await call("GET", `${JOBS}/dryly`)).status).toBe(404)
  })

  test("Foreground holds the Job until its pods are gone; meanwhile edits are taken, a create is AlreadyExists, a second Foreground changes nothing", async () => {
    const pod = await running("fore")
    const rv = await now(JOBS)
    const { body } = await call("DELETE", `${JOBS}/fore`, FOREGROUND)
    expect(body.metadata).toMatchObject({
      generation: 2,
      deletionGracePeriodSeconds: 0,
      finalizers: ["foregroundDeletion"],
    })
    expect(body.metadata.deletionTimestamp).toBeString()
    expect((await create("fore")).body).toMatchObject({
      code: 409,
      reason: "AlreadyExists",
      message: 'object is being deleted: jobs.batch "fore" already exists',
    })
    const edited = await call("PATCH", `${JOBS}/fore`, { metadata: { annotations: { edited: "1" } } }, MERGE)
    expect(edited).toMatchObject({ status: 200, body: { metadata: { annotations: { edited: "1" } } } })
    expect((await call("DELETE", `${JOBS}/fore`, FOREGROUND)).body.metadata).toMatchObject({
      generation: 2,
      finalizers: ["foregroundDeletion"],
    })
    const finalizer = await call(
      "PATCH",
      `${JOBS}/fore`,
      { metadata: { finalizers: ["a.b/c", "foregroundDeletion"] } },
      MERGE,
    )
    expect(finalizer.status).toBe(422)
    expect(finalizer.body.details.causes[0]).toMatchObject({
      field: "metadata.finalizers",
      reason: "FieldValueForbidden",
    })
    const seen = await watch(
      JOBS,
      `resourceVersion=${rv}&fieldSelector=metadata.name%3Dfore`,
      (e) => e.type === "DELETED",
    )
    expect(seen.at(-1)!.object.metadata.finalizers).toEqual(["foregroundDeletion"])
    expect((await call("GET", `${PODS}/${pod.metadata.name}`)).status).toBe(404)
  })

  test("a Background delete during a Foreground one takes the Job away at once, its pod still there", async () => {
    const pod = await running("strip")
    await call("DELETE", `${JOBS}/strip`, FOREGROUND)
    expect((await call("DELETE", `${JOBS}/strip`, BACKGROUND)).body.status).toBe("Success")
    expect((await call("GET", `${JOBS}/strip`)).status).toBe(404)
    expect((await call("GET", `${PODS}/${pod.metadata.name}`)).status).toBe(200)
    await gone(`${PODS}/${pod.metadata.name}`)
  })

  test("Background takes the Job at once and its pods after it", async () => {
    const pod = await running("back")
    expect((await call("DELETE", `${JOBS}/back`, BACKGROUND)).body.status).toBe("Success")
    expect((await call("GET", `${JOBS}/back`)).status).toBe(404)
    await gone(`${PODS}/${pod.metadata.name}`)
  })

  test("without a policy the pods of a Job are orphaned, with a warning", async () => {
    const pod = await running("plain")
    const answer = await call("DELETE", `${JOBS}/plain`)
    expect(answer.body.metadata.finalizers).toEqual(["orphan"])
    expect(answer.headers.get("warning")).toContain("child pods are preserved by default when jobs are deleted")
    await gone(`${JOBS}/plain`)
    const { metadata } = await get(`${PODS}/${pod.metadata.name}`)
    expect(metadata).toMatchObject({ name: pod.metadata.name })
    expect([metadata.ownerReferences, metadata.finalizers, metadata.deletionTimestamp]).toEqual([
      undefined,
      undefined,
      undefined,
    ])
    const killed = await call("DELETE", `${PODS}/${pod.metadata.name}?gracePeriodSeconds=0`)
    expect(killed.body).toMatchObject({ kind: "Pod", metadata: { deletionGracePeriodSeconds: 0 } })
    expect((await call("GET", `${PODS}/${pod.metadata.name}`)).status).toBe(404)
  })

  test("a finalizer of a user holds a deleted Job until it is taken away", async () => {
    await suspended("held", { finalizers: ["example.com/f"] })
    await reach("held", "Suspended")
    const { body } = await call("DELETE", `${JOBS}/held`, BACKGROUND)
    expect(body.metadata).toMatchObject({ finalizers: ["example.com/f"], generation: 2 })
    await Bun.sleep(real ? 500 : 20)
    const freed = await call("PATCH", `${JOBS}/held`, { metadata: { finalizers: null } }, MERGE)
    expect(freed.body.metadata).toMatchObject({ resourceVersion: body.metadata.resourceVersion })
    expect(freed.body.metadata.finalizers).toBeUndefined()
    expect((await call("GET", `${JOBS}/held`)).status).toBe(404)
  })

  test("a Job whose owner does not exist is collected", async () => {
    const owner = { apiVersion: "v1", kind: "ConfigMap", name: "n", uid: "d9607e19-f88f-11e6-a518-42010a800195" }
    expect((await suspended("dangling", { ownerReferences: [owner] })).status).toBe(201)
    await gone(`${JOBS}/dangling`)
  })
})

describe("Job controller", () => {
  const fails: Attempt[] = [{ runMs: 300, containers: { main: { exitCode: 3, log: "HTTP 429\nlast line\n" } } }]
  /** What each watch event of a Job says, repetitions left out. */
  const story = async (name: string, wanted: Wanted): Promise<string[]> => {
    const rv = await now(JOBS)
    await create(name, wanted)
    const last = (e: Any) => has(e.object, "Failed") || has(e.object, "Complete") || e.type === "DELETED"
    const seen = await watch(JOBS, `resourceVersion=${rv}&fieldSelector=metadata.name%3D${name}`, last)
    const said = seen.map(({ object: { status: s } }) =>
      [
        ...(s.conditions ?? []).map((c: Any) => `${c.type}:${c.reason}`),
        ...["active", "failed", "succeeded", "terminating"].filter((k) => s[k]).map((k) => `${k}=${s[k]}`),
      ].join(" "),
    )
    return said.filter((s, i) => s !== said[i - 1])
  }
  const B = "BackoffLimitExceeded"

  test("a failing pod stays, with exit code and log; the Job is FailureTarget first, then Failed", async () => {
    const told = await story("never", { attempts: fails, spec: { backoffLimit: 0 } })
    expect(told).toEqual(["", "active=1", `FailureTarget:${B}`, `FailureTarget:${B} Failed:${B} failed=1`])
    const job = await get(`${JOBS}/never`)
    expect(job.status).toEqual({
      conditions: ["FailureTarget", "Failed"].map((type, i) => ({
        type,
        status: "True",
        lastProbeTime: job.status.conditions[i].lastProbeTime,
        lastTransitionTime: expect.stringMatching(/T\d\d:\d\d:\d\dZ$/),
        reason: B,
        message: "Job has reached the specified backoff limit",
      })),
      startTime: expect.stringMatching(/Z$/),
      failed: 1,
      terminating: 0,
      uncountedTerminatedPods: {},
      ready: 0,
    })
    const [pod] = await podsOf("never")
    const { uid } = job.metadata
    expect(pod!.metadata).toMatchObject({
      generateName: "never-",
      generation: 1,
      labels: job.spec.template.metadata.labels,
    })
    expect(pod!.metadata.ownerReferences).toEqual([
      { apiVersion: "batch/v1", kind: "Job", name: "never", uid, controller: true, blockOwnerDeletion: true },
    ])
    expect(pod!.metadata.finalizers).toBeUndefined()
    expect(pod!.status.phase).toBe("Failed")
    const [container] = pod!.status.containerStatuses
    expect(container).toMatchObject({
      name: "main",
      ready: false,
      started: false,
      restartCount: 0,
      lastState: {},
      state: { terminated: { exitCode: 3, reason: "Error" } },
    })
    expect(container.containerID).toStartWith("containerd://")
    expect(pod!.status.conditions.map((c: Any) => `${c.type}=${c.status} ${c.reason ?? ""}`.trim())).toEqual([
      "PodReadyToStartContainers=False",
      "Initialized=True",
      "Ready=False PodFailed",
      "ContainersReady=False PodFailed",
      "PodScheduled=True",
    ])
    const log = async (query = "", name = pod!.metadata.name) =>
      (await call("GET", `${PODS}/${name}/log?${query}`)).body
    expect(String([await log(), await log("tailLines=1"), await log("limitBytes=4")])).toBe(
      "HTTP 429\nlast line\n,last line\n,HTTP",
    )
    expect(await log("container=zz")).toMatchObject({
      code: 400,
      message: `container zz is not valid for pod ${pod!.metadata.name}`,
    })
    expect(await log("previous=true")).toMatchObject({
      code: 400,
      message: `previous terminated container "main" in pod "${pod!.metadata.name}" not found`,
    })
    expect(await log("", "nope")).toMatchObject({ code: 404, details: { name: "nope", kind: "pods" } })
  })

  test("with restartPolicy OnFailure the pod is restarted in place and deleted before Failed=True", async () => {
    const told = await story("inplace", {
      attempts: fails,
      spec: { backoffLimit: 0 },
      pod: { restartPolicy: "OnFailure" },
    })
    const target = `FailureTarget:${B}`
    expect(told).toEqual([
      "",
      "active=1",
      `${target} terminating=1`,
      `${target} failed=1 terminating=1`,
      `${target} failed=1`,
      `${target} Failed:${B} failed=1`,
    ])
    await until("pods gone", async () => !(await podsOf("inplace")).length)
  })

  test("a restarted container has a restartCount, its last state and its previous log", async () => {
    await create("again", { attempts: fails, spec: { backoffLimit: 3 }, pod: { restartPolicy: "OnFailure" } })
    const pod = await until("a restart", async () =>
      (await podsOf("again")).find((p) => p.status.containerStatuses?.[0].restartCount > 0),
    )
    expect(pod.status.containerStatuses[0].lastState.terminated).toMatchObject({ exitCode: 3, reason: "Error" })
    const before = await call("GET", `${PODS}/${pod.metadata.name}/log?previous=true`)
    expect(String(before.body)).toMatch(/HTTP 429|unable to retrieve container logs for containerd:/)
    await call("DELETE", `${JOBS}/again`, { propagationPolicy: "Background" })
  })

  test("past activeDeadlineSeconds the running pod is deleted, then the Job is Failed as DeadlineExceeded", async () => {
    const told = await story("late", { spec: { activeDeadlineSeconds: 2 } })
    const target = "FailureTarget:DeadlineExceeded"
    expect(told).toEqual([
      "",
      "active=1",
      `${target} terminating=1`,
      `${target} failed=1 terminating=1`,
      `${target} failed=1`,
      `${target} Failed:DeadlineExceeded failed=1`,
    ])
  })

  test("a podFailurePolicy fails the Job by exit code, whatever its backoffLimit", async () => {
    const rules = [{ action: "FailJob", onExitCodes: { operator: "In", values: [3] } }]
    await create("policy", { attempts: fails, spec: { podFailurePolicy: { rules } } })
    const { status, spec } = await reach("policy", "Failed")
    expect(spec.podReplacementPolicy).toBe("Failed")
    expect(status.conditions[1]).toMatchObject({
      reason: "PodFailurePolicy",
      message: expect.stringMatching(
        /^Container main for pod .* failed with exit code 3 matching FailJob rule at index 0$/,
      ),
    })
  })

  test("a failed init container fails its pod; the others never start and have no log", async () => {
    const attempts: Attempt[] = [{ runMs: 0, containers: { first: { exitCode: 5, log: "first\n", runMs: 0 } } }]
    const first = {
      name: "first",
      image: "docker.io/local/busybox:1",
      imagePullPolicy: "Never",
      command: shell("first", attempts[0]),
    }
    await create("init", { attempts, spec: { backoffLimit: 0 }, pod: { initContainers: [first] } })
    await reach("init", "Failed")
    const [pod] = await podsOf("init")
    expect(pod!.status).toMatchObject({
      phase: "Failed",
      initContainerStatuses: [{ name: "first", state: { terminated: { exitCode: 5 } } }],
      containerStatuses: [{ name: "main", state: { waiting: { reason: "PodInitializing" } } }],
    })
    const log = (container: string) => call("GET", `${PODS}/${pod!.metadata.name}/log?container=${container}`)
    expect((await log("first")).body).toBe("first\n" as unknown as Any)
    expect((await log("main")).body).toMatchObject({
      code: 400,
      message: `container "main" in pod "${pod!.metadata.name}" is waiting to start: PodInitializing`,
    })
  })

  test("the log of a pod that no node has is 204 and empty; one of several containers must be named", async () => {
    await create("nowhere", { pod: { schedulingGates: [{ name: "example.com/gate" }] } })
    const side = {
      name: "side",
      image: "docker.io/local/busybox:1",
      imagePullPolicy: "Never",
      command: ["sleep", "1000"],
    }
    const { containers } = jobOf("x").spec.template.spec
    await create("pair", { pod: { containers: [...containers, side] } })
    const log = async (job: string) => call("GET", `${PODS}/${(await podsOf(job))[0]!.metadata.name}/log`)
    await until("running", async () => (await podsOf("pair"))[0]?.status.phase === "Running")
    expect(await log("nowhere")).toMatchObject({ status: 204, body: "" as unknown as Any })
    expect((await log("pair")).body.message).toMatch(
      /^a container name must be specified for pod pair-\w+, choose one of: \[main side\]$/,
    )
  })

  test("a Job that succeeds is SuccessCriteriaMet, then Complete, and goes ttlSecondsAfterFinished later", async () => {
    const told = await story("fine", { attempts: [{ runMs: 100 }], spec: { ttlSecondsAfterFinished: 1 } })
    const met = "SuccessCriteriaMet:CompletionsReached"
    expect(told).toEqual(["", "active=1", met, `${met} Complete:CompletionsReached succeeded=1`])
    expect((await get(`${JOBS}/fine`)).status.completionTime).toBeString()
    await gone(`${JOBS}/fine`)
  })

  test("suspending deletes the pods and counts no failure; resuming starts anew", async () => {
    await create("pause")
    const first = await until("runs", async () => (await podsOf("pause")).find((p) => p.status.phase === "Running"))
    await call("PATCH", `${JOBS}/pause`, { spec: { suspend: true } }, MERGE)
    await gone(`${PODS}/${first.metadata.name}`)
    const { status } = await reach("pause", "Suspended")
    expect([status.failed, status.active]).toEqual([undefined, undefined])
    await call("PATCH", `${JOBS}/pause`, { spec: { suspend: false } }, MERGE)
    await until("runs again", async () => (await podsOf("pause")).length === 1)
    const resumed = await until("resumed", async () =>
      (await get(`${JOBS}/pause`)).status.conditions?.find((c: Any) => c.status === "False"),
    )
    expect(resumed).toMatchObject({ type: "Suspended", reason: "JobResumed", message: "Job resumed" })
    await call("DELETE", `${JOBS}/pause`, { propagationPolicy: "Background" })
  })
})

describe("users", () => {
  test("what the Role does not allow is a Forbidden that names user, verb and resource", async () => {
    const user = await withRole("old", OLD_ROLE)
    const ask = (method: string, path: string, body?: unknown) =>
      call(method, path, body, { user: "old", ...(method === "PATCH" && MERGE) })
    const whose = (verb: string, what: string, group: string, where = `in the namespace "${ns}"`) =>
      `User "${user}" cannot ${verb} resource "${what}" in API group "${group}" ${where}`
    expect((await ask("GET", JOBS)).status).toBe(200)
    const expected: [Reply, string, Any][] = [
      [
        await ask("GET", `${JOBS}?watch=1`),
        `jobs.batch is forbidden: ${whose("watch", "jobs", "batch")}`,
        { group: "batch", kind: "jobs" },
      ],
      [
        await ask("GET", "/apis/batch/v1/jobs"),
        `jobs.batch is forbidden: ${whose("list", "jobs", "batch", "at the cluster scope")}`,
        { group: "batch", kind: "jobs" },
      ],
      [
        await ask("PATCH", `${JOBS}/a`, {}),
        `jobs.batch "a" is forbidden: ${whose("patch", "jobs", "batch")}`,
        { name: "a", group: "batch", kind: "jobs" },
      ],
      [
        await ask("DELETE", JOBS),
        `jobs.batch is forbidden: ${whose("deletecollection", "jobs", "batch")}`,
        { group: "batch", kind: "jobs" },
      ],
      [
        await ask("GET", `/api/v1/namespaces/${ns}`),
        `namespaces "${ns}" is forbidden: ${whose("get", "namespaces", "")}`,
        { name: ns, kind: "namespaces" },
      ],
      [
        await ask("PATCH", `${JOBS}/a/status`, {}),
        `jobs.batch "a" is forbidden: ${whose("patch", "jobs/status", "batch")}`,
        { name: "a", group: "batch", kind: "jobs" },
      ],
    ]
    for (const [reply, message, details] of expected)
      expect(reply).toMatchObject({ status: 403, body: { message, reason: "Forbidden", details, code: 403 } })
    expect((await ask("GET", `${PODS}/x/log`)).status).toBe(404)
    expect((await ask("GET", "/version")).body).toMatchObject({ major: "1", minor: "35" })
  })

  test("a SelfSubjectRulesReview says the Role's rules, resourceNames included, which hold for a watch of that one name", async () => {
    const rules = [
      { verbs: ["get", "list", "watch"], apiGroups: ["batch"], resources: ["jobs"], resourceNames: ["one"] },
    ]
    await withRole("narrow", rules)
    const review = (spec: Any) =>
      call(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        { kind: "SelfSubjectRulesReview", apiVersion: "authorization.k8s.io/v1", spec },
        { user: "narrow" },
      )
    const { status, body } = await review({ namespace: ns })
    expect(status).toBe(201)
    expect(body.status.resourceRules).toContainEqual(rules[0])
    expect(body.status.incomplete).toBe(false)
    expect((await review({})).body).toMatchObject({ code: 400, message: "no namespace on request" })
    const list = (query: string) => call("GET", `${JOBS}?${query}`, undefined, { user: "narrow" })
    expect((await list("")).status).toBe(403)
    expect((await list("fieldSelector=metadata.name%3Done")).status).toBe(200)
  })

  test("an unknown token is 401, no credentials at all a 403 for system:anonymous", async () => {
    tokens.wrong = "wrong"
    expect((await call("GET", JOBS, undefined, { user: "wrong" })).body).toMatchObject({
      code: 401,
      reason: "Unauthorized",
      message: "Unauthorized",
    })
    tokens.nobody = ""
    expect((await call("GET", JOBS, undefined, { user: "nobody" })).body.message).toContain(
      'User "system:anonymous" cannot list resource "jobs"',
    )
  })
})

describe.skipIf(Boolean(real))("the embedded server", () => {
  const at = (path: string, init: Any = {}) =>
    fetch(url + path, { ...init, headers: { authorization: "Bearer admin" }, tls: { ca: server.ca } } as RequestInit)

  test("forgotten resourceVersions are 410: a continued list, with a token to go on inconsistently, and a watch by an ERROR event", async () => {
    const rv = await now(JOBS)
    const page = await get(`${JOBS}?limit=1`)
    await suspended("later")
    server.model.compact()
    const expired = await call("GET", `${JOBS}?limit=1&continue=${page.metadata.continue}`)
    expect(expired.body).toMatchObject({ code: 410, reason: "Expired" })
    expect((await call("GET", `${JOBS}?continue=${expired.body.metadata.continue}`)).status).toBe(200)
    const [event] = await watch(JOBS, `resourceVersion=${rv}`, () => false)
    expect(event).toMatchObject({
      type: "ERROR",
      object: {
        code: 410,
        reason: "Expired",
        message: expect.stringMatching(/^too old resource version: \d+ \(\d+\)$/),
      },
    })
  })

  test("faults: each one does what it says, as often as it was asked to", async () => {
    server.fault({ verb: "create", resource: "jobs" }, { drop: "before" })
    expect(suspended("dropped")).rejects.toThrow()
    await Bun.sleep(20)
    expect((await call("GET", `${JOBS}/dropped`)).status).toBe(404)
    server.fault({ verb: "create", resource: "jobs" }, { drop: "after" })
    expect(suspended("applied")).rejects.toThrow()
    await Bun.sleep(20)
    expect((await call("GET", `${JOBS}/applied`)).status).toBe(200)
    server.fault({ name: /^app/ }, { status: 429, retryAfterSeconds: 7 }, { after: 1 })
    expect((await call("GET", `${JOBS}/applied`)).status).toBe(200)
    const busy = await call("GET", `${JOBS}/applied`)
    expect([
      busy.status,
      busy.headers.get("retry-after"),
      busy.body.details.retryAfterSeconds,
      busy.body.reason,
    ]).toEqual([429, "7", 7, "TooManyRequests"])
    server.fault({ verb: "list" }, { delayMs: 60, dateOffsetMs: 3_600_000 })
    const started = Date.now()
    const slow = await call("GET", JOBS)
    expect(Date.now() - started).toBeGreaterThanOrEqual(60)
    expect(Date.parse(slow.headers.get("date")!) - Date.now()).toBeWithin(3_590_000, 3_610_000)
    server.fault({ verb: "list" }, { hang: true })
    expect(at(JOBS, { signal: AbortSignal.timeout(50) })).rejects.toThrow()
    await Bun.sleep(80)
    server.fault({ subresource: "log" }, { endlessBody: true })
    server.model.put({
      kind: "Pod",
      metadata: { name: "p", namespace: ns },
      spec: { containers: [{ name: "main" }], nodeName: "node" },
    })
    const abort = new AbortController()
    const reader = (await at(`${PODS}/p/log`, { signal: abort.signal })).body!.getReader()
    for (let bytes = 0; bytes < 500_000; ) bytes += (await reader.read()).value?.length ?? 0
    abort.abort()
    expect(server.calls.filter((c) => c.verb === "create" && c.name === undefined && c.status === 0).length).toBe(2)
  })

  test("faults of a watch: an end, a broken line, an ERROR event", async () => {
    await suspended("w1")
    await suspended("w2")
    const all = () => watch(JOBS, "", () => false)
    server.fault({ verb: "watch" }, { cutAfter: 1 })
    expect(await all()).toHaveLength(1)
    server.fault({ verb: "watch" }, { errorAfter: 1, code: 500, reason: "InternalError" })
    expect((await all()).map((e) => e.type)).toEqual(["ADDED", "ERROR"])
    server.fault({ verb: "watch" }, { breakLineAfter: 1 })
    expect(all()).rejects.toThrow()
  })

  test("a client certificate of the CA is a user, one of another CA is 401; the kubeconfig works as it is", async () => {
    server.addUser("bob", OLD_ROLE)
    const ask = async (cert: { cert: string; key: string }) =>
      (await fetch(`${url}/apis/batch/v1/jobs?watch=1`, { tls: { ca: server.ca, ...cert } } as RequestInit)).status
    expect(await ask(await server.authority.issue({ cn: "bob", client: true }))).toBe(403)
    expect(await ask(await (await newAuthority("foreign")).issue({ cn: "bob", client: true }))).toBe(401)
    const kc = new KubeConfig()
    kc.loadFromString(server.kubeconfig({ user: "bob", namespace: ns }))
    expect([kc.getCurrentCluster()?.server, kc.getCurrentUser()?.token, kc.getContexts()[0]?.namespace]).toEqual([
      url,
      "bob",
      ns,
    ])
  })

  test("a stopped server cuts its watches and refuses connections; started again it has the same port and objects, or none", async () => {
    await suspended("kept")
    const cut = watch(JOBS, "", () => false)
    await Bun.sleep(20)
    await server.stop()
    await Promise.race([cut.catch(() => []), Bun.sleep(1000).then(() => expect("still open").toBe("cut"))])
    expect(at(JOBS)).rejects.toThrow()
    await server.start()
    expect((await call("GET", `${JOBS}/kept`)).status).toBe(200)
    expect(server.url).toBe(url)
  })
})

describe.skipIf(Boolean(real))("the model in virtual time", () => {
  function world(options: Partial<ConstructorParameters<typeof Model>[0]> = {}) {
    let clock = Date.parse("2026-01-01T00:00:00Z")
    const model = new Model({ now: () => clock, ...options })
    const run = (ms: number) => {
      const end = clock + ms
      for (let next = model.tick(); next !== undefined && next <= end; next = model.tick())
        clock = Math.max(clock, next)
      clock = end
      model.tick()
    }
    const create = (name: string, wanted: Wanted) =>
      model.request({ verb: "create", resource: "jobs", namespace: "default", body: jobOf(name, wanted) })
    const failed = () => model.job("default", "a")?.status.conditions?.some((c) => c.type === "Failed") ?? false
    return {
      model,
      run,
      create,
      failed,
      remove: (propagationPolicy = "Foreground") =>
        model.request({
          verb: "delete",
          resource: "jobs",
          namespace: "default",
          name: "a",
          body: { propagationPolicy },
        }),
    }
  }
  const fails: Attempt = { runMs: 1000, containers: { main: { exitCode: 1 } } }

  test("retries double their delay: seven attempts with a backoff of 10 s take ten minutes and more, and no time", () => {
    const { run, create, failed, model } = world({ backoffMs: 10_000 })
    create("a", { attempts: [fails] })
    run(600_000)
    expect(failed()).toBe(false)
    run(100_000)
    expect(failed()).toBe(true)
    expect(model.pods()).toHaveLength(7)
  })

  test("a script's attempts count across restarts of the name, so that a Job can fail once and then succeed; or start anew with each uid", () => {
    for (const attemptsPer of ["name", "uid"] as const) {
      const { run, create, failed, remove, model } = world({ attemptsPer })
      const wanted = { attempts: [fails, { runMs: 1000 }], spec: { backoffLimit: 0 } }
      create("a", wanted)
      run(5000)
      expect(failed()).toBe(true)
      remove()
      run(1000)
      expect(model.job("default", "a")).toBeUndefined()
      create("a", wanted)
      run(5000)
      expect(failed()).toBe(attemptsPer === "uid")
    }
  })

  test("an evicted pod says so; a pod without its image waits; a dead node lets nothing end; a stalled Job gets its pod once it is touched", () => {
    const evicted = world()
    evicted.create("a", { attempts: [{ runMs: 500, evicted: true }], spec: { backoffLimit: 0 } })
    evicted.run(2000)
    expect(evicted.model.pods()[0]!.status).toMatchObject({
      phase: "Failed",
      reason: "Evicted",
      conditions: expect.arrayContaining([expect.objectContaining({ type: "DisruptionTarget", status: "True" })]),
    })

    const pull = world()
    pull.create("a", { attempts: [{ imagePull: "ImagePullBackOff" }] })
    pull.run(60_000)
    expect(pull.model.pods()[0]!.status.containerStatuses?.[0]?.state).toEqual({
      waiting: { reason: "ImagePullBackOff" },
    })

    const dead = world()
    dead.create("a", { spec: { activeDeadlineSeconds: 5 } })
    dead.run(2000)
    dead.model.node(false)
    dead.run(3_600_000)
    expect([dead.failed(), dead.model.pods().length]).toEqual([false, 1])
    dead.model.node(true)
    dead.run(1000)
    expect([dead.failed(), dead.model.pods().length]).toEqual([true, 0])

    const stalled = world()
    stalled.model.stall("default", "a")
    stalled.create("a", {})
    stalled.run(60_000)
    expect(stalled.model.pods()).toHaveLength(0)
    stalled.model.request({
      verb: "patch",
      resource: "jobs",
      namespace: "default",
      name: "a",
      body: { metadata: { annotations: { touched: "1" } } },
    })
    stalled.run(1000)
    expect(stalled.model.pods()).toHaveLength(1)
  })

  test("lost containers answer their log with a sentence; an event may make a request at once; equal worlds are equal", () => {
    const tell = () => {
      const { model, run, create } = world()
      const seen: string[] = []
      model.watch({ resource: "jobs", namespace: "default" }, ({ type, object }) => {
        seen.push(`${type} ${object.metadata.uid} ${object.metadata.resourceVersion}`)
        if (type === "ADDED" && object.metadata.name === "a") create("b", { spec: { suspend: true } })
      })
      create("a", { attempts: [fails], spec: { backoffLimit: 0 } })
      run(5000)
      const [pod] = model.pods()
      model.loseLogs("default", pod!.metadata.name)
      const { body } = model.request({
        verb: "get",
        resource: "pods",
        namespace: "default",
        name: pod!.metadata.name,
        subresource: "log",
      })
      expect(body).toMatch(/^unable to retrieve container logs for containerd:\/\/\w+$/)
      return seen
    }
    expect(tell()).toEqual(tell())
    expect(tell().length).toBeGreaterThan(5)
  })

  test("ten thousand restarts of a Job leave nothing behind", () => {
    const { model, run, create, remove, failed } = world()
    for (let i = 0; i < 10_000; i++) {
      create("a", { attempts: [{ ...fails, runMs: 10 }], spec: { backoffLimit: 0 } })
      run(100)
      if (!failed()) throw new Error(`round ${i}: not failed`)
      remove()
      run(50)
    }
    expect([model.objects.jobs!.size, model.pods().length]).toEqual([0, 0])
  })
})
