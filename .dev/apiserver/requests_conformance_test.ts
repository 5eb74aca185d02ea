// Conformance of the embedded API server: creates, updates, lists, watches and users.
import { describe, expect, test } from "bun:test"
import {
  type Any,
  call,
  clean,
  create,
  get,
  gone,
  JOBS,
  jobOf,
  jobsOf,
  lines,
  MERGE,
  now,
  ns,
  PODS,
  type Reply,
  reach,
  real,
  suspended,
  tokens,
  until,
  useCluster,
  watch,
  withRole,
} from "./conformance.ts"
import { OLD_ROLE } from "./roles.ts"

useCluster()

describe("create", () => {
  test("a Job gets the server's defaults and selector, and the labels of its template", async () => {
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

  test("labels given keep the generated ones out", async () => {
    const own = await create("own", { spec: { suspend: true }, metadata: { labels: { a: "b" } } })
    expect(own.body.metadata.labels).toEqual({ a: "b" })
  })

  test("status, uid and times given are ignored", async () => {
    const made = await call("POST", JOBS, {
      ...jobOf("x", { spec: { suspend: true } }),
      metadata: { generateName: "gen-", uid: "x", creationTimestamp: "2020-01-01T00:00:00Z", generation: 7 },
      status: { failed: 3 },
    })
    expect(made.body.metadata).toMatchObject({ name: expect.stringMatching(/^gen-[a-z0-9]{5}$/), generation: 1 })
    expect(made.body.metadata.creationTimestamp).not.toMatch(/^2020/)
    expect(made.body.status).toEqual({})
  })

  test("a dry run answers 201 and stores nothing", async () => {
    const dry = await call("POST", `${JOBS}?dryRun=All`, jobOf("dry"))
    expect(dry.status).toBe(201)
    expect(dry.body.metadata.resourceVersion).toBeUndefined()
    expect((await call("GET", `${JOBS}/dry`)).status).toBe(404)
  })

  test("an existing name is rejected as AlreadyExists", async () => {
    await suspended("twice")
    const message = 'jobs.batch "twice" already exists'
    const details = { name: "twice", group: "batch", kind: "jobs" }
    const status = { kind: "Status", apiVersion: "v1", metadata: {}, status: "Failure" }
    expect((await suspended("twice")).body).toEqual({ ...status, message, reason: "AlreadyExists", details, code: 409 })
  })

  test("a create in a missing namespace is 404, with another namespace in the body 400", async () => {
    const missing = await call("POST", jobsOf("nowhere"), jobOf("a"))
    expect(missing).toMatchObject({ status: 404, body: { details: { name: "nowhere", kind: "namespaces" } } })
    expect(await call("GET", jobsOf("nowhere"))).toMatchObject({ status: 200, body: { items: [] } })
    expect(await call("POST", JOBS, jobOf("a", { metadata: { namespace: "other" } }))).toMatchObject({
      status: 400,
      body: { reason: "BadRequest" },
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
        /^jobs.batch ".*" is forbidden: exceeded quota: q, requested: count\/jobs.batch=1, used: count\/jobs.batch=1/,
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
  test("a stale or foreign update is a Conflict, and one of the template Invalid", async () => {
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

  test("merge, strategic and JSON patches change annotations", async () => {
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

  test("a patch of a ConfigMap that changes nothing leaves the resourceVersion", async () => {
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

  test("a list of metadata alone has labels and annotations, page by page", async () => {
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
      // Of an empty page it is null.
      items.push(...(body.items ?? []))
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

  test("a watch shows what enters its selection as ADDED, what leaves it as DELETED, as it was", async () => {
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

  test("a watch with timeoutSeconds ends by itself, after a bookmark", async () => {
    await suspended("here")
    const rv = await now(JOBS)
    const [first] = await watch(JOBS, "resourceVersion=0&fieldSelector=metadata.name%3Dhere", () => true)
    expect(first).toMatchObject({ type: "ADDED", object: { metadata: { name: "here" } } })
    const seen: Any[] = []
    const query = `watch=1&resourceVersion=${rv}&allowWatchBookmarks=true&timeoutSeconds=4`
    for await (const event of lines(`${JOBS}?${query}&fieldSelector=metadata.name%3Dnobody`)) seen.push(event)
    expect(seen).toMatchObject([{ type: "BOOKMARK", object: { kind: "Job", apiVersion: "batch/v1" } }])
    expect(Number(seen[0]!.object.metadata.resourceVersion)).toBeGreaterThanOrEqual(Number(rv))
    expect((await call("GET", `${JOBS}?watch=1&resourceVersion=abc`)).status).toBe(500)
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

  test("a SelfSubjectRulesReview says the Role's rules, resourceNames included", async () => {
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
