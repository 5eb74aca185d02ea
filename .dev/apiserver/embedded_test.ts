// What only the embedded API server does: faults on demand, and virtual time.
import { describe, expect, test } from "bun:test"
import { KubeConfig } from "@kubernetes/client-node"
import {
  type Any,
  call,
  get,
  JOBS,
  jobOf,
  now,
  ns,
  PODS,
  server,
  suspended,
  until,
  url,
  useCluster,
  type Wanted,
  watch,
} from "./conformance.ts"
import { newAuthority } from "./http.ts"
import { type Attempt, Model } from "./model.ts"
import { OLD_ROLE } from "./roles.ts"

useCluster()

describe("the embedded server", () => {
  const at = (path: string, init: Any = {}) =>
    fetch(url + path, { ...init, headers: { authorization: "Bearer admin" }, tls: { ca: server.ca } } as RequestInit)

  test("a forgotten resourceVersion is 410 for a continued list and for a watch", async () => {
    for (const name of ["first", "second"]) await suspended(name)
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
    await expect(suspended("dropped")).rejects.toThrow()
    expect((await call("GET", `${JOBS}/dropped`)).status).toBe(404)
    server.fault({ verb: "create", resource: "jobs" }, { drop: "after" })
    await expect(suspended("applied")).rejects.toThrow()
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
    const answered: string[] = []
    const [slow] = await Promise.all([
      call("GET", JOBS).finally(() => answered.push("slow")),
      call("GET", `${JOBS}/applied`).finally(() => answered.push("fast")),
    ])
    expect(answered).toEqual(["fast", "slow"])
    expect(Date.parse(slow.headers.get("date")!) - Date.now()).toBeWithin(3_590_000, 3_610_000)
    server.fault({ verb: "list" }, { hang: true })
    await expect(at(JOBS, { signal: AbortSignal.timeout(50) })).rejects.toThrow()
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

  test("a client certificate of the CA is a user, one of another CA is 401", async () => {
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

  test("a server that was stopped and started again has the same port and objects", async () => {
    await suspended("kept")
    const cut = watch(JOBS, "", () => false)
    await until("watching", async () => server.calls.some(({ verb, status }) => verb === "watch" && status === 200))
    await server.stop()
    await cut.catch(() => [])
    await expect(at(JOBS)).rejects.toThrow()
    await server.start()
    expect((await call("GET", `${JOBS}/kept`)).status).toBe(200)
    expect(server.url).toBe(url)
  })
})

describe("the model in virtual time", () => {
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

  test("retries double their delay: seven attempts with a backoff of 10 s take over ten minutes", () => {
    const { run, create, failed, model } = world({ backoffMs: 10_000 })
    create("a", { attempts: [fails] })
    run(600_000)
    expect(failed()).toBe(false)
    run(100_000)
    expect(failed()).toBe(true)
    expect(model.pods()).toHaveLength(7)
  })

  test("a script's attempts count across restarts of the name, or start anew with each uid", () => {
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

  test("an evicted pod says so", () => {
    const { create, run, model } = world()
    create("a", { attempts: [{ runMs: 500, evicted: true }], spec: { backoffLimit: 0 } })
    run(2000)
    expect(model.pods()[0]!.status).toMatchObject({
      phase: "Failed",
      reason: "Evicted",
      conditions: expect.arrayContaining([expect.objectContaining({ type: "DisruptionTarget", status: "True" })]),
    })
  })

  test("a pod without its image waits", () => {
    const { create, run, model } = world()
    create("a", { attempts: [{ imagePull: "ImagePullBackOff" }] })
    run(60_000)
    expect(model.pods()[0]!.status.containerStatuses?.[0]?.state).toEqual({ waiting: { reason: "ImagePullBackOff" } })
  })

  test("a Job on a dead node does not fail before the node is back", () => {
    const { create, run, model, failed } = world()
    create("a", { spec: { activeDeadlineSeconds: 5 } })
    run(2000)
    model.node(false)
    run(3_600_000)
    expect([failed(), model.pods().length]).toEqual([false, 1])
    model.node(true)
    run(1000)
    expect([failed(), model.pods().length]).toEqual([true, 0])
  })

  test("a stalled Job gets its pod when it is edited", () => {
    const { create, run, model } = world()
    model.stall("default", "a")
    create("a", {})
    run(60_000)
    expect(model.pods()).toHaveLength(0)
    const body = { metadata: { annotations: { touched: "1" } } }
    model.request({ verb: "patch", resource: "jobs", namespace: "default", name: "a", body })
    run(1000)
    expect(model.pods()).toHaveLength(1)
  })

  test("a stalled Job gets no pod by what happened to its predecessor just before", () => {
    const { create, run, model } = world()
    create("a", {})
    run(1000)
    const first = model.job("default", "a")?.metadata.uid
    model.watch({ resource: "jobs", namespace: "default" }, ({ type }) => {
      if (type !== "DELETED") return
      model.stall("default", "a")
      create("a", {})
    })
    const body = { propagationPolicy: "Background" }
    model.request({ verb: "delete", resource: "jobs", namespace: "default", name: "a", body })
    run(60_000)
    expect(model.job("default", "a")?.metadata.uid).not.toBe(first)
    expect(model.pods()).toEqual([])
  })

  test("equal worlds are equal, even where a watch event makes a request at once", () => {
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
