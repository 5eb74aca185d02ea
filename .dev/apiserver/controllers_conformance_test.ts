// Conformance of the embedded API server: deletion, the garbage collector, the Job controller and the kubelet.
import { describe, expect, test } from "bun:test"
import {
  type Any,
  call,
  create,
  get,
  gone,
  has,
  JOBS,
  jobOf,
  MERGE,
  now,
  PODS,
  podsOf,
  reach,
  real,
  shell,
  suspended,
  until,
  useCluster,
  type Wanted,
  watch,
} from "./conformance.ts"
import type { Attempt } from "./model.ts"

useCluster()

describe("delete", () => {
  const FOREGROUND = { propagationPolicy: "Foreground" }
  const BACKGROUND = { propagationPolicy: "Background" }
  const running = async (name: string, wanted?: Wanted): Promise<Any> => {
    await create(name, wanted)
    return until(`${name} runs`, async () => (await podsOf(name)).find((p) => p.status.phase === "Running"))
  }

  test("preconditions that do not hold are a Conflict, and nothing is deleted", async () => {
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
      `precondition (1) does not match the ResourceVersion in record (${metadata.resourceVersion})`,
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

  test("Foreground holds the Job, which can still be edited, until its pods are gone", async () => {
    const pod = await running("fore", { attempts: [{ graceMs: 1_500 }] })
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

  test("a Job whose pod fails is FailureTarget first, then Failed, and keeps the pod", async () => {
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

  test("past activeDeadlineSeconds the pod is deleted, then the Job is Failed as DeadlineExceeded", async () => {
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

  test("a failed init container fails its pod before the other containers start", async () => {
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

  const logOf = async (job: string) => call("GET", `${PODS}/${(await podsOf(job))[0]!.metadata.name}/log`)
  test("the log of a pod that no node has is 204 and empty", async () => {
    await create("nowhere", { pod: { schedulingGates: [{ name: "example.com/gate" }] } })
    await until("a pod", async () => (await podsOf("nowhere")).length > 0)
    expect(await logOf("nowhere")).toMatchObject({ status: 204, body: "" as unknown as Any })
  })

  test("for a log of one of several containers, the container must be named", async () => {
    const side = {
      name: "side",
      image: "docker.io/local/busybox:1",
      imagePullPolicy: "Never",
      command: ["sleep", "1000"],
    }
    const { containers } = jobOf("x").spec.template.spec
    await create("pair", { pod: { containers: [...containers, side] } })
    await until("running", async () => (await podsOf("pair"))[0]?.status.phase === "Running")
    expect((await logOf("pair")).body.message).toMatch(
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

  test("a Job that is suspended and resumed starts anew, without a failure", async () => {
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
