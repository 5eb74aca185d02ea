// What the API client of operator.ts reads as a stream, logs and watches, against real HTTPS servers that misbehave.
// How the loop lives through bad weather is in loop_test.ts. An id in a name is a report listed in
// .github/docs/reports.md.
import { describe, expect, test } from "bun:test"
import {
  type Evidence,
  gatherEvidence,
  type PodView,
  readSettings,
  systemClock,
  viewJob,
  viewPod,
} from "../../operator.ts"
import {
  connected,
  errorOf,
  event,
  failed,
  flood,
  job,
  never,
  refuse,
  type Served,
  serve,
  status,
  tidyUp,
  until,
  watched,
} from "./connection_kit.ts"

tidyUp()

describe("Logs", () => {
  const read = async (server: Served, lines = 20, previous = false) =>
    (await connected(server)).readLog("demo", "q1", "worker", { lines, previous }, never)
  const podOf = (name: string, main: object, containers = ["worker", "mesh"]) =>
    viewPod({
      metadata: {
        name,
        namespace: "demo",
        uid: name,
        ownerReferences: [{ kind: "Job", uid: "U1", controller: true } as never],
      },
      status: {
        phase: "Failed",
        initContainerStatuses: [{ name: "fetch", state: { terminated: { exitCode: 0 } } } as never],
        containerStatuses: containers.map((container) => ({ name: container, ...main }) as never),
      },
    })
  const ended = { state: { terminated: { exitCode: 1, startedAt: null, finishedAt: null } } }
  const evidenceOf = async (server: Served, pods: PodView[], earlier?: Evidence) => {
    const { config } = readSettings({ NAMESPACE: "demo", JOB_NAMES: "load-a" })
    const clock = { ...systemClock, sleep: () => Promise.resolve() }
    const world = {
      cluster: await connected(server),
      clock,
      emit: () => {},
      config,
      stop: never,
      kill: never,
    }
    return gatherEvidence(world, viewJob(failed() as never), pods, earlier)
  }

  test("logs of pods that are evidence no more are dropped, and take no room from the others", async () => {
    const server = await serve(() => "x\n")
    const pods: PodView[] = []
    let evidence: Evidence | undefined
    for (const look of [1, 2, 3]) {
      for (const i of Array(5).keys()) pods.push(podOf(`q${look}${i}`, ended, ["worker"]))
      evidence = await evidenceOf(server, pods, evidence)
    }
    expect([...(evidence?.logs.keys() ?? [])].filter((key) => key.endsWith("/worker")).sort()).toEqual(
      Array.from({ length: 5 }, (_, i) => `q3${i}/worker`),
    )
    expect(evidence?.logs.size).toBe(10)
    expect(server.calls.length).toBe(30)
  })

  test("C01 each container's log is asked for by its name, C14 the previous run's only where asked", async () => {
    const server = await serve(({ query }, response) =>
      query.has("container") ? "x\n" : refuse(response, 400, "BadRequest"),
    )
    const evidence = await evidenceOf(server, [podOf("q1", ended)])
    expect(server.calls.map(({ query }) => [query.get("container"), query.get("previous")]).sort()).toEqual([
      ["fetch", null],
      ["mesh", null],
      ["worker", null],
    ])
    expect([...evidence.logs.values()].map(({ lines }) => lines)).toEqual([["x"], ["x"], ["x"]])
    await read(server, 20, true)
    expect(server.calls.at(-1)?.query.get("previous")).toBe("true")
  })

  test("H39 the end of a log with long lines is kept, and no limit of the server cuts it off", async () => {
    const pieces = Array.from({ length: 200 }, (_, n) => `${"#".repeat(16_000)} ${n}\n`)
    const server = await serve((_, response) => void response.end(pieces.join("")))
    const { lines, note } = await read(server, 200)
    expect(server.calls.map(({ query }) => query.has("limitBytes"))).toEqual([false])
    expect(lines.at(-1)).toEndWith("# 199")
    expect(note).toBe("log too long to read whole, cut")
  })

  test("a few logs are read at once, for each takes memory, and the others in their turn", async () => {
    let [open, most] = [0, 0]
    const server = await serve(async () => {
      most = Math.max(most, ++open)
      for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
      open--
      return "x\n"
    })
    const cluster = await connected(server)
    const readOne = () => cluster.readLog("demo", "q1", "worker", { lines: 20, previous: false }, never)
    const tails = await Promise.all(Array.from({ length: 100 }, readOne))
    expect(tails.flatMap(({ lines }) => lines).length).toBe(100)
    expect(most).toBeWithin(2, 30)
  })

  test("C05 the last line is read however many long lines LOG_LINES asks for", async () => {
    const pieces = Array.from({ length: 500 }, (_, n) => `${"#".repeat(10_000)} ${n}\n`)
    const server = await serve((_, response) => void response.end(pieces.join("")))
    expect((await read(server, 500)).lines.at(-1)).toEndWith("# 499")
  })

  test.each([
    ...[400, 403, 404].map((code) => [code, 1] as const),
    ...[410, 429, 500, 503].map((code) => [code, 2] as const),
  ])(
    "C03 C11 J01 %i for a log is a note beside the logs of the others, however often it is asked for: %i",
    async (code, times) => {
      const server = await serve(({ line }, response) =>
        line.includes("/q1/") ? "q1's words\n" : refuse(response, code, "Reason"),
      )
      const evidence = await evidenceOf(server, [podOf("q1", ended, ["worker"]), podOf("q2", ended, ["worker"])])
      expect(evidence.logs.get("q1/worker")?.lines).toEqual(["q1's words"])
      expect(evidence.logs.get("q2/worker")).toMatchObject({
        lines: [],
        note: expect.stringContaining(`log not available: ${code}`),
      })
      expect(
        server.calls.filter(({ line, query }) => line.includes("/q2/") && query.get("container") === "worker").length,
      ).toBe(times)
    },
  )

  const bodies: [string, (n: number) => string][] = [
    ["an endless body without a line end", () => "x".repeat(4_096)],
    ["endless short lines", (n) => `line ${n}\n`.repeat(1_000)],
    ["endless long lines", (n) => `${n} ${"y".repeat(100_000)}\n`],
  ]
  test.each(bodies)("C05 %s costs neither memory nor time, and is said to be cut", async (_, piece) => {
    const server = await serve((_, response) => flood(response, piece))
    Bun.gc(true)
    const before = process.memoryUsage().rss
    const { lines, note } = await read(server)
    expect(note).toBe("log too long to read whole, cut")
    expect(lines.length).toBeLessThanOrEqual(20)
    expect(Math.max(...lines.map(({ length }) => length))).toBeLessThan(1_100)
    await until(() => server.sockets.size === 0)
    expect(process.memoryUsage().rss - before).toBeLessThan(96 << 20)
  })

  const cut: [string, number[], string][] = [
    ["that ends within a character", [0x61, 0xe2, 0x96], "a\ufffd"],
    ["of a part of a character alone", [0xe2, 0x96], "\ufffd"],
  ]
  test.each(cut)("J07 a log %s keeps a replacement character for it", async (_, bytes, line) => {
    const server = await serve((_, response) => void response.end(Buffer.from(bytes)))
    expect((await read(server)).lines).toEqual([line])
  })

  const sentence = "unable to retrieve container logs for containerd://abc"
  const ten = Array.from({ length: 10 }, (_, n) => (n === 2 ? sentence : `line ${n}`))
  const hundreds = Array.from({ length: 500 }, (_, n) => (n === 199 ? "the error" : `line ${n + 1}`))
  const texts: [string, string, number, object][] = [
    [
      "C06 only the kubelet's sentence: no log",
      sentence,
      20,
      { lines: [], note: `log not available: ${sentence}`, final: false },
    ],
    ["C06 its sentence among others: a log", `${ten.join("\n")}\n`, 20, { lines: ten }],
    ["C08 nothing: empty, no error", "", 20, { lines: [], note: "log empty, it may have been rotated" }],
    ["C08 the last 3 lines", "a\nb\nc\n", 20, { lines: ["a", "b", "c"] }],
    [
      "C10 a tail that is long enough has the error",
      hundreds.slice(-400).join("\n"),
      400,
      { lines: expect.arrayContaining(["the error"]), note: "last 400 lines" },
    ],
  ]
  test.each(texts)("%s", async (_, body, lines, right) => {
    const server = await serve(
      (_, response) => void response.writeHead(200, { "content-type": "text/plain" }).end(body),
    )
    expect(await read(server, lines)).toEqual(right as never)
    expect(server.calls[0]?.query.get("tailLines")).toBe(String(lines))
  })
})

describe("A watch", () => {
  const streaming = (...parts: (string | Uint8Array)[]) =>
    serve(async (_, response) => {
      for (const part of parts) {
        response.write(part)
        await Bun.sleep(5)
      }
      response.end()
    })

  test("events come whole, however they are cut on the way", async () => {
    const bytes = Buffer.from(event("ADDED", job("2", { name: "straße-☂" })) + event("MODIFIED", job("3")))
    const cut = bytes.indexOf("☂") + 1
    const server = await streaming(
      bytes.subarray(0, cut),
      bytes.subarray(cut, cut + 3),
      bytes.subarray(cut + 3),
      "\n",
      '{"type":"DEL',
    )
    expect((await watched(await connected(server))).map(({ type, object }) => [type, object.metadata?.name])).toEqual([
      ["ADDED", "straße-☂"],
      ["MODIFIED", "load-a"],
    ])
  })

  test("D05 bookmarks and unknown types are handed on as they are", async () => {
    const skeleton = {
      kind: "Job",
      apiVersion: "batch/v1",
      metadata: { resourceVersion: "900" },
      spec: { template: { metadata: {}, spec: { containers: null } } },
      status: {},
    }
    const server = await streaming(event("BOOKMARK", skeleton), event("SOMETHINGNEW", {}))
    expect((await watched(await connected(server))).map(({ type }) => type)).toEqual(["BOOKMARK", "SOMETHINGNEW"])
  })

  const broken: [string, string[], object][] = [
    [
      "D01 an ERROR event",
      [event("ERROR", status(410, "Expired"))],
      { name: "ApiError", status: 410, reason: "Expired" },
    ],
    [
      "D12 an ERROR event that says when to come back",
      [event("ERROR", status(500, "", { retryAfterSeconds: 4 }))],
      { status: 500, retryAfterMs: 4_000 },
    ],
    ["an ERROR event without a Status", ['{"type":"ERROR"}\n'], { message: expect.stringContaining("500") }],
    ...(
      [
        ["a broken line", "{{"],
        ["a line that is no event", "null"],
        ["J16 an event without an object", '{"type":"ADDED"}'],
        ["J16 an event whose object is null", '{"type":"DELETED","object":null}'],
        ["J16 an object without metadata", '{"type":"MODIFIED","object":{"kind":"Job"}}'],
        ["J16 a bookmark without metadata", '{"type":"BOOKMARK","object":{}}'],
        ["J16 an event without a type", '{"object":{"metadata":{}}}'],
      ] as const
    ).map(([name, line]): [string, string[], object] => [
      name,
      [`${line}\n`],
      { message: "the watch sent a line that is not an event about an object with metadata" },
    ]),
  ]
  test.each(broken)("%s is an error, and the socket is closed", async (_, parts, right) => {
    const server = await serve((_, response) => void response.write(parts.join("")))
    expect(await errorOf(watched(await connected(server)))).toMatchObject(right)
    await until(() => server.sockets.size === 0)
  })

  test("D04 silence is an error, though the socket is open, and counts from the last byte", async () => {
    const server = await serve((_, response) => {
      response.flushHeaders()
      for (const ms of [300, 600, 900]) setTimeout(() => response.write(event("ADDED", job())), ms)
    })
    const cluster = await connected(server)
    const seen: string[] = []
    const read = async () => {
      const events = cluster.watch("demo", "jobs", { resourceVersion: "1", silenceMs: 800 }, never)
      for await (const { type } of events) seen.push(type)
    }
    expect((await errorOf(read())).message).toBe("no data received for 800ms")
    expect(seen).toEqual(["ADDED", "ADDED", "ADDED"])
    await until(() => server.sockets.size === 0)
  })

  test("a line without end is given up", async () => {
    const server = await serve((_, response) => flood(response, () => "x".repeat(65_536)))
    expect((await errorOf(watched(await connected(server)))).message).toBe("the watch sent an event without end")
    await until(() => server.sockets.size === 0)
  })

  test("F07 watches that we end leave neither sockets nor memory behind", async () => {
    const line = event("ADDED", job("2", { annotations: { note: "x".repeat(65_536) } }))
    const server = await serve((_, response) => void response.write(line))
    const cluster = await connected(server)
    const cycles = async (n: number) => {
      for (let i = 0; i < n; i++)
        for await (const _ of cluster.watch("demo", "jobs", { resourceVersion: "1", silenceMs: 60_000 }, never)) break
    }
    await cycles(50)
    Bun.gc(true)
    const before = process.memoryUsage().rss
    await cycles(200)
    Bun.gc(true)
    expect(process.memoryUsage().rss - before).toBeLessThan(32 << 20)
    await until(() => server.sockets.size === 0)
  })

  test("stopping ends a watch at once, without an error", async () => {
    const stop = new AbortController()
    const server = await serve((_, response) => void response.write(event("ADDED", job())))
    const seen: string[] = []
    for await (const { type } of (await connected(server)).watch(
      "demo",
      "jobs",
      { resourceVersion: "1", silenceMs: 60_000 },
      stop.signal,
    )) {
      seen.push(type)
      setTimeout(() => stop.abort(), 5)
    }
    expect(seen).toEqual(["ADDED"])
    await until(() => server.sockets.size === 0)
  })
})
