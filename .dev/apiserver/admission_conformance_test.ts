// Conformance of the embedded API server: what the restart protocol relies on. Dry runs, admission, Jobs that another
// controller manages, and finalizers that nobody may take off.
import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import {
  type Any,
  call,
  create,
  get,
  gone,
  JOBS,
  jobOf,
  jobsOf,
  MERGE,
  ns,
  podsOf,
  reach,
  real,
  server,
  suspended,
  until,
  useCluster,
} from "./conformance.ts"
import { type Authority, newAuthority } from "./http.ts"
import type { Denial, Obj, Operation } from "./model.ts"

useCluster()

const FOREGROUND = { propagationPolicy: "Foreground" }
const BACKGROUND = { propagationPolicy: "Background" }
const dryRun = (job: Any, query = "") => call("POST", `${JOBS}?dryRun=All${query}`, job)
const patch = (name: string, body: Any) => call("PATCH", `${JOBS}/${name}`, body, MERGE)
/** A suspended Job that is being deleted, and that its finalizer holds. */
async function terminating(name: string): Promise<void> {
  await suspended(name, { finalizers: ["example.com/hold"] })
  await call("DELETE", `${JOBS}/${name}`, FOREGROUND)
}
const alreadyExists = (name: string, prefix = "", suffix = "") => ({
  status: 409,
  body: {
    reason: "AlreadyExists",
    message: `${prefix}jobs.batch "${name}" already exists${suffix}`,
    details: { name, group: "batch", kind: "jobs" },
  },
})

// ---- Policies and webhooks, on either server

const ADMISSION = "/apis/admissionregistration.k8s.io/v1"
interface TestPolicy {
  name: string
  operations?: Operation[]
  reason?: "Forbidden"
  message: string
  /** What it wants, in CEL, and the same as a function. */
  cel: string
  isFine(object: Any): boolean
  /** A Job that it rejects at its creation; without one nobody can tell when the policy begins to hold. */
  probe: Any
}
/** Runs `during` while the policy holds in the namespace. */
async function withPolicy(policy: TestPolicy, during: () => Promise<void>): Promise<void> {
  const { name, operations = ["CREATE"], reason, message, cel, isFine, probe } = policy
  if (!real) {
    const deny = ({ object }: { object: Obj }) => (isFine(object) ? undefined : message)
    server.model.admission.policies.push({ name, operations, deny, ...(reason && { reason }) })
    await during()
    return void server.model.admission.policies.pop()
  }
  const rule = { apiGroups: ["batch"], apiVersions: ["v1"], operations, resources: ["jobs"] }
  const validation = { expression: cel, message, ...(reason && { reason }) }
  const spec = { failurePolicy: "Fail", matchConstraints: { resourceRules: [rule] }, validations: [validation] }
  const namespaceSelector = { matchLabels: { "kubernetes.io/metadata.name": ns } }
  const binding = { policyName: name, validationActions: ["Deny"], matchResources: { namespaceSelector } }
  const policies = `${ADMISSION}/validatingadmissionpolicies`
  const bindings = `${ADMISSION}/validatingadmissionpolicybindings`
  await call("POST", policies, { metadata: { name }, spec })
  await call("POST", bindings, { metadata: { name: `${name}-binding` }, spec: binding })
  try {
    await until(`${name} holds`, async () => (await dryRun(probe)).body.message?.includes(message))
    await during()
  } finally {
    await call("DELETE", `${bindings}/${name}-binding`)
    await call("DELETE", `${policies}/${name}`)
    await until(`${name} is gone`, async () => !(await dryRun(probe)).body.message?.includes(message))
  }
}

interface TestWebhook {
  name: string
  /** Changes the object as a JSON patch says. */
  patch?: Any[]
  deny?: Denial
}
let authority: Authority
let hooks: ReturnType<typeof Bun.serve> | undefined
/** Runs `during` while the webhook is called for every Job with the label hook: yes. */
async function withWebhook(webhook: TestWebhook, during: () => Promise<void>): Promise<void> {
  const { name, patch: operations, deny } = webhook
  if (!real) {
    const isAsked = (object: Obj) => object.metadata.labels?.hook === "yes"
    server.model.admission.webhooks.push({
      name,
      mutate: ({ object }) => (operations && isAsked(object) ? patched(object, operations) : object),
      deny: ({ object }) => (deny && isAsked(object) ? deny : undefined),
    })
    await during()
    return void server.model.admission.webhooks.pop()
  }
  const kind = deny ? "validatingwebhookconfigurations" : "mutatingwebhookconfigurations"
  const clientConfig = { url: hookUrl(webhook), caBundle: Buffer.from(authority.cert).toString("base64") }
  const rules = [{ apiGroups: ["batch"], apiVersions: ["v1"], operations: ["CREATE"], resources: ["jobs"] }]
  const objectSelector = { matchLabels: { hook: "yes" } }
  const namespaceSelector = { matchLabels: { "kubernetes.io/metadata.name": ns } }
  const rest = { admissionReviewVersions: ["v1"], sideEffects: "None", timeoutSeconds: 5 }
  const hook = { name, clientConfig, rules, objectSelector, namespaceSelector, ...rest }
  await call("POST", `${ADMISSION}/${kind}`, { metadata: { name }, webhooks: [hook] })
  try {
    await until(`${name} is called`, async () => {
      await dryRun(hooked("probe"))
      return asked.has(name)
    })
    await during()
  } finally {
    await call("DELETE", `${ADMISSION}/${kind}/${name}`)
  }
}
const answers = new Map<string, TestWebhook>()
const asked = new Set<string>()
function hookUrl(webhook: TestWebhook): string {
  answers.set(webhook.name, webhook)
  return `https://127.0.0.1:${hooks?.port}/${webhook.name}`
}
async function answer(request: Request): Promise<Response> {
  const name = new URL(request.url).pathname.slice(1)
  asked.add(name)
  const { patch: operations, deny } = answers.get(name)!
  const { uid } = ((await request.json()) as Any).request
  const patchOf = operations && {
    patchType: "JSONPatch",
    patch: Buffer.from(JSON.stringify(operations)).toString("base64"),
  }
  const response = { uid, allowed: !deny, ...(deny && { status: deny }), ...patchOf }
  return Response.json({ apiVersion: "admission.k8s.io/v1", kind: "AdmissionReview", response })
}
/** As far as these tests need JSON patches. */
function patched(object: Obj, operations: Any[]): Obj {
  const metadata: Any = { ...object.metadata }
  for (const { op, path, value } of operations) {
    const key = path.replace("/metadata/", "")
    if (op === "remove") delete metadata[key]
    else metadata[key] = value
  }
  return { ...object, metadata: metadata as Obj["metadata"] }
}
const hooked = (name: string, metadata: Any = {}) =>
  jobOf(name, { spec: { suspend: true }, metadata: { labels: { hook: "yes" }, annotations: { a: "1" }, ...metadata } })

beforeAll(async () => {
  if (!real) return
  authority = await newAuthority("hooks")
  const { cert, key } = await authority.issue({ cn: "hooks", sans: ["127.0.0.1"] })
  hooks = Bun.serve({ port: 0, hostname: "127.0.0.1", tls: { cert, key }, fetch: answer })
})
afterAll(() => hooks?.stop(true))

// ---- Dry runs

describe("a dry run under the name of an existing Job", () => {
  test("answers AlreadyExists, in the server's own sentence, and changes nothing", async () => {
    await suspended("proof")
    const before = await reach("proof", "Suspended")
    expect(await dryRun(jobOf("proof"))).toMatchObject(alreadyExists("proof"))
    expect((await get(`${JOBS}/proof`)).metadata.resourceVersion).toBe(before.metadata.resourceVersion)
  })

  test("says so of a Job that is being deleted", async () => {
    await terminating("proof-going")
    expect(await dryRun(jobOf("proof-going"))).toMatchObject(alreadyExists("proof-going", "object is being deleted: "))
    await patch("proof-going", { metadata: { finalizers: null } })
  })

  test("says of a Job with a generateName that no unique name could be made", async () => {
    await suspended("proof-named")
    const suffix = ", the server was not able to generate a unique name for the object"
    const answered = await dryRun(jobOf("proof-named", { metadata: { generateName: "proof-" } }))
    expect(answered).toMatchObject(alreadyExists("proof-named", "", suffix))
    expect(answered.body.details.retryAfterSeconds).toBe(1)
  })

  test("is rejected as Invalid first, if the Job is invalid", async () => {
    await suspended("proof-invalid")
    const { status, body } = await dryRun(jobOf("proof-invalid", { spec: { backoffLimit: -1 } }))
    expect([status, body.reason]).toEqual([422, "Invalid"])
  })

  test("is rejected by a policy first", async () => {
    await suspended("proof-policy")
    const job = jobOf("proof-policy", { metadata: { annotations: { bad: "1" } } })
    await withPolicy(
      {
        name: `${ns}-annotation`,
        message: "no bad annotation",
        cel: "!has(object.metadata.annotations) || !('bad' in object.metadata.annotations)",
        isFine: ({ metadata }) => metadata.annotations?.bad === undefined,
        probe: job,
      },
      async () => {
        expect((await dryRun(job)).status).toBe(422)
        expect(await dryRun(jobOf("proof-policy"))).toMatchObject(alreadyExists("proof-policy"))
      },
    )
  })

  test("is rejected by a full quota first, and needs room for one Job more", async () => {
    const full = `${ns}-full`
    await call("POST", "/api/v1/namespaces", { metadata: { name: full } })
    const spec = { hard: { "count/jobs.batch": "2" } }
    await call("POST", `/api/v1/namespaces/${full}/resourcequotas`, { metadata: { name: "q" }, spec })
    if (real) await until("quota", async () => (await get(`/api/v1/namespaces/${full}/resourcequotas/q`)).status.used)
    const make = (name: string, query = "") =>
      call("POST", jobsOf(full) + query, jobOf(name, { spec: { suspend: true } }))
    await make("a")
    expect((await make("a", "?dryRun=All")).status).toBe(409)
    await make("b")
    expect((await make("a", "?dryRun=All")).status).toBe(403)
    await call("DELETE", `/api/v1/namespaces/${full}`)
  })

  test("overlooks a resourceVersion, which a real create rejects with 500", async () => {
    await suspended("proof-version")
    const versioned = (name: string) => jobOf(name, { metadata: { resourceVersion: "5" } })
    expect(await dryRun(versioned("proof-version"))).toMatchObject(alreadyExists("proof-version"))
    expect((await dryRun(versioned("nobody"))).status).toBe(201)
    const message = "resourceVersion should not be set on objects to be created"
    for (const name of ["proof-version", "nobody"])
      expect((await call("POST", JOBS, versioned(name))).body).toMatchObject({ code: 500, message })
  })
})

describe("fieldValidation", () => {
  const odd = (name: string) => {
    const job = jobOf(name, { spec: { suspend: true } })
    job.spec.foo = 1
    job.spec.template.spec.containers[0].resources = { limitz: {} }
    return job
  }
  const unknown = ['unknown field "spec.foo"', 'unknown field "spec.template.spec.containers[0].resources.limitz"']
  const post = (name: string, query: string) => call("POST", `${JOBS}?${query}`, odd(name))

  test("Strict rejects unknown fields by name, before everything else", async () => {
    await suspended("odd-exists")
    const message = 'Job in version "v1" cannot be handled as a Job: strict decoding error: '
    for (const query of ["fieldValidation=Strict", "fieldValidation=Strict&dryRun=All"]) {
      const { status, body } = await post("odd-exists", query)
      expect([status, body.reason]).toEqual([400, "BadRequest"])
      expect(body.message.slice(0, message.length)).toBe(message)
      expect(body.message.slice(message.length).split(", ").toSorted()).toEqual(unknown)
    }
  })

  test("Warn, the default, drops them with a warning, Ignore without one", async () => {
    const warned = await post("odd-warn", "")
    expect(warned.status).toBe(201)
    expect(warned.body.spec.foo).toBeUndefined()
    for (const text of unknown) expect(warned.headers.get("warning")).toContain(text.replaceAll('"', '\\"'))
    const ignored = await post("odd-ignore", "fieldValidation=Ignore")
    expect([ignored.status, ignored.headers.get("warning")]).toEqual([201, null])
  })
})

// ---- Jobs that nobody runs

describe("a Job that another controller manages", () => {
  const managed = (name: string, spec: Any = {}, metadata: Any = {}) =>
    create(name, { spec: { suspend: true, managedBy: "example.com/intents", ...spec }, metadata })
  /** A Job made now has its pod: what the controllers had to do before is done. */
  const settle = async (name: string) => {
    await create(name)
    await until(`${name} has a pod`, async () => (await podsOf(name)).length > 0)
    await call("DELETE", `${JOBS}/${name}`, BACKGROUND)
  }

  test("gets no pod, no finalizer and no status, though somebody resumes and scales it", async () => {
    await managed("managed")
    await patch("managed", { spec: { suspend: false } })
    await patch("managed", { spec: { parallelism: 3 } })
    await settle("settle-managed")
    expect(await podsOf("managed")).toEqual([])
    const job = await get(`${JOBS}/managed`)
    expect([job.status, job.metadata.finalizers]).toEqual([{}, undefined])
  })

  test("with parallelism 0 has no completions", async () => {
    const { body } = await managed("managed-idle", { parallelism: 0 })
    expect([body.spec.parallelism, body.spec.completions]).toEqual([0, undefined])
  })

  test("keeps managedBy", async () => {
    await managed("managed-kept")
    for (const managedBy of ["example.com/other", null]) {
      const { status, body } = await patch("managed-kept", { spec: { managedBy } })
      expect([status, body.details.causes[0].field]).toEqual([422, "spec.managedBy"])
    }
  })

  test("needs a managedBy with a domain", async () => {
    const { status, body } = await managed("managed-nowhere", { managedBy: "nowhere" })
    expect([status, body.details.causes[0].field]).toEqual([422, "spec.managedBy"])
  })

  test.each(["Foreground", "Background", "Orphan", undefined])("goes when it is deleted (%p)", async (policy) => {
    const name = `managed-${(policy ?? "none").toLowerCase()}`
    await managed(name)
    await call("DELETE", `${JOBS}/${name}`, policy ? { propagationPolicy: policy } : {})
    await gone(`${JOBS}/${name}`)
  })

  test("wears the labels of its template once it has lost its own", async () => {
    await managed("managed-bare", {}, { labels: { mine: "yes" } })
    const { body } = await patch("managed-bare", { metadata: { labels: { mine: null } } })
    expect(body.metadata.labels).toMatchObject({ "job-name": "managed-bare" })
    expect(body.metadata.labels).not.toHaveProperty("mine")
  })

  test.skipIf(Boolean(real))("is an ordinary Job where the feature gate is off", async () => {
    const { Model } = await import("./model.ts")
    const model = new Model({ now: () => 0, hasManagedBy: false })
    const body = jobOf("old", { spec: { managedBy: "example.com/intents" } })
    const query = { fieldValidation: "Strict" }
    expect(model.request({ verb: "create", resource: "jobs", namespace: "default", body, query }).status).toBe(201)
    expect(model.job("default", "old")?.spec.managedBy).toBeUndefined()
  })
})

test("a Job with parallelism 0 gets no pod, though somebody resumes it", async () => {
  await create("idle", { spec: { suspend: true, parallelism: 0 } })
  await reach("idle", "Suspended")
  await patch("idle", { spec: { suspend: false } })
  await until("idle is resumed", async () =>
    (await get(`${JOBS}/idle`)).status.conditions.some((c: Any) => c.type === "Suspended" && c.status === "False"),
  )
  expect(await podsOf("idle")).toEqual([])
})

test("the annotations of an object may total 256 KiB, keys included", async () => {
  const job = (bytes: number) => jobOf("large", { metadata: { annotations: { k: "x".repeat(bytes - 1) } } })
  expect((await dryRun(job(262_144))).status).toBe(201)
  const { status, body } = await dryRun(job(262_145))
  expect([status, body.details.causes[0].field]).toEqual([422, "metadata.annotations"])
  expect(body.message).toEndWith("metadata.annotations: Too long: may not be more than 262144 bytes")
})

// ---- Policies and webhooks

describe("a validating policy", () => {
  const probe = jobOf("denied", { metadata: { labels: { deny: "yes" } }, spec: { suspend: true } })
  const policy = (name: string, more: Partial<TestPolicy> = {}): TestPolicy => ({
    name: `${ns}-${name}`,
    message: `not ${name}`,
    cel: "!has(object.metadata.labels) || !('deny' in object.metadata.labels)",
    isFine: ({ metadata }) => metadata.labels?.deny === undefined,
    probe,
    ...more,
  })

  test("denies with 422 Invalid, in its own sentence", async () => {
    await withPolicy(policy("this"), async () => {
      const { status, body } = await call("POST", JOBS, probe)
      const why = `ValidatingAdmissionPolicy '${ns}-this' with binding '${ns}-this-binding' denied request: not this`
      expect([status, body.reason, body.message]).toEqual([422, "Invalid", `jobs.batch "denied" is forbidden: ${why}`])
      expect(body.details).toEqual({ name: "denied", group: "batch", kind: "jobs", causes: [{ message: why }] })
    })
  })

  test("denies with 403 Forbidden if it is to", async () => {
    await withPolicy(policy("that", { reason: "Forbidden" }), async () => {
      const { status, body } = await call("POST", JOBS, probe)
      expect([status, body.reason]).toEqual([403, "Forbidden"])
    })
  })

  test("of updates keeps foregroundDeletion on a Job until a Background delete", async () => {
    const operations: Operation[] = ["CREATE", "UPDATE"]
    const cel = "request.operation == 'CREATE' ? object.metadata.name != 'denied' : false"
    const isFine = ({ metadata }: Any) => metadata.resourceVersion === undefined && metadata.name !== "denied"
    await withPolicy(policy("frozen", { operations, cel, isFine }), async () => {
      await suspended("frozen")
      expect((await patch("frozen", { metadata: { labels: { x: "1" } } })).status).toBe(422)
      expect((await call("DELETE", `${JOBS}/frozen`, FOREGROUND)).status).toBe(200)
      // Another Job, whose owner is gone, is collected after it.
      const owner = { apiVersion: "v1", kind: "ConfigMap", name: "gone", uid: "d9607e19-f88f-11e6-a518-42010a800195" }
      await suspended("later", { ownerReferences: [owner] })
      await gone(`${JOBS}/later`)
      expect((await get(`${JOBS}/frozen`)).metadata.finalizers).toEqual(["foregroundDeletion"])
      await call("DELETE", `${JOBS}/frozen`, BACKGROUND)
      expect((await call("GET", `${JOBS}/frozen`)).status).toBe(404)
    })
  })
})

describe("a webhook", () => {
  test("may drop the annotations of what is created", async () => {
    await withWebhook(
      { name: `drop.${ns}.test`, patch: [{ op: "remove", path: "/metadata/annotations" }] },
      async () => {
        const { status, body } = await call("POST", JOBS, hooked("stripped"))
        expect([status, body.metadata.annotations]).toEqual([201, undefined])
      },
    )
  })

  test("may add an owner that does not exist, and the garbage collector takes the Job", async () => {
    const uid = "d9607e19-f88f-11e6-a518-42010a800195"
    const value = [{ apiVersion: "v1", kind: "ConfigMap", name: "gone", uid }]
    await withWebhook(
      { name: `own.${ns}.test`, patch: [{ op: "add", path: "/metadata/ownerReferences", value }] },
      async () => {
        const { status, body } = await call("POST", JOBS, hooked("owned"))
        expect([status, body.metadata.ownerReferences[0].uid]).toEqual([201, uid])
        await gone(`${JOBS}/owned`)
      },
    )
  })

  test("may add a finalizer, so that a deleted Job stays and answers AlreadyExists", async () => {
    const value = ["example.com/hold"]
    await withWebhook(
      { name: `hold.${ns}.test`, patch: [{ op: "add", path: "/metadata/finalizers", value }] },
      async () => {
        await call("POST", JOBS, hooked("held"))
        await call("DELETE", `${JOBS}/held`, BACKGROUND)
        const again = await call("POST", JOBS, hooked("held"))
        expect(again).toMatchObject(alreadyExists("held", "object is being deleted: "))
        await patch("held", { metadata: { finalizers: null } })
      },
    )
  })

  test("may itself answer AlreadyExists, and only the sentence tells it from the server's", async () => {
    await suspended("hook-exists")
    const deny = { code: 409, reason: "AlreadyExists", message: 'jobs.batch "hook-exists" already exists' }
    const name = `exists.${ns}.test`
    await withWebhook({ name, deny }, async () => {
      const { status, body } = await dryRun(hooked("hook-exists"))
      const message = `admission webhook "${name}" denied the request: ${deny.message}`
      expect([status, body.reason, body.message]).toEqual([409, "AlreadyExists", message])
    })
  })

  test("that gives no code rejects with 400", async () => {
    const name = `plain.${ns}.test`
    await withWebhook({ name, deny: { message: "no" } }, async () => {
      const { status, body } = await dryRun(hooked("hook-plain"))
      expect([status, body.message]).toEqual([400, `admission webhook "${name}" denied the request: no`])
    })
  })
})
