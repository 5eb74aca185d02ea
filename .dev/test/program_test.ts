// The program as a process: the compiled binary, alone in an empty folder, against real HTTPS servers with throw-away
// CAs on 127.0.0.1. What it says is read from its stderr. An id in a name is a report, listed in
// .github/docs/reports.md.
import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { $ } from "bun"
import { SERVICE_ACCOUNT } from "../../operator.ts"
import project from "../../package.json" with { type: "json" }
import { startApiServer } from "../apiserver/http.ts"
import { FAST, SCRIPT } from "../apiserver/model.ts"
import { OPERATOR_ROLE } from "../apiserver/roles.ts"
import {
  ada,
  base64,
  endings,
  failed,
  file,
  folder,
  foreign,
  type Handler,
  hang,
  identityOf,
  isAlive,
  kubeconfigOf,
  plugin,
  quiet,
  refuse,
  type Served,
  serve,
  tidyUp,
  trusted,
  until,
} from "./connection_kit.ts"

tidyUp()
const alone = join(folder, "alone")
const binary = join(alone, "operator")
beforeAll(async () => {
  const made = await Bun.build({
    entrypoints: [join(import.meta.dir, "../../operator.ts")],
    target: "bun",
    minify: true,
    bytecode: true,
    compile: { outfile: binary, autoloadDotenv: false, autoloadBunfig: false },
  })
  expect(made.success).toBe(true)
}, 60_000)
afterAll(() => rmSync(alone, { recursive: true, force: true }))

/** Starts the binary; what it leaves running ends with the test. */
function start(env: Record<string, string>, args: string[] = [], around: string[] = []) {
  const whole = { HOME: folder, PATH: process.env.PATH ?? "", JOB_NAMES: "load-a", NAMESPACE: "demo", ...env }
  const child = Bun.spawn([...around, binary, ...args], { cwd: alone, env: whole, stdout: "pipe", stderr: "pipe" })
  endings.push(() => child.kill("SIGKILL"))
  let log = ""
  const reading = (async () => {
    const decoder = new TextDecoder()
    for await (const part of child.stderr) log += decoder.decode(part, { stream: true })
  })()
  return {
    child,
    log: () => log,
    says: (pattern: RegExp) =>
      until(() => pattern.test(log)).catch(() => Promise.reject(new Error(`${pattern} is not in:\n${log}`))),
    async ends() {
      const [code, stdout] = await Promise.all([child.exited, child.stdout.text(), reading])
      return { code, stdout, log }
    },
  }
}
const at = (server: Served, cluster?: object, user: object = { token: "t0ken" }) => ({
  KUBECONFIG: file(kubeconfigOf(server.address, cluster, user)),
})
const works = /\| starting\n[\s\S]*cluster +Kubernetes v1.35.1 at https/
const oneLine = (text: RegExp) => new RegExp(`^\\S+ \\S+ \\| FATAL {4}\\| ${text.source}\\n$`)

describe("Without a cluster", () => {
  test("--help and --version need no cluster and no settings", async () => {
    const [help, version, wrong] = await Promise.all(
      [["--help"], ["--version"], ["--hepl"]].map((args) => start({ JOB_NAMES: "" }, args).ends()),
    )
    expect(help).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^flickr[\s\S]*LOG_LEVEL[\s\S]*Exit codes/),
      log: "",
    })
    expect(version).toEqual({ code: 0, stdout: `${project.version}\n`, log: "" })
    expect(wrong).toMatchObject({ code: 2, stdout: "", log: expect.stringMatching(/^error: .*--hepl/) })
  })

  test("every wrong setting is told at once, with what is allowed; nothing is sent", async () => {
    const server = await serve(quiet())
    const wrong = {
      LOG_LEVEL: "LOUD",
      RESTART_DELAY: "60 sheep",
      CHECK_INTERVAL: "-1",
      LOG_LINES: "many",
      DRY_RUN: "perhaps",
      JOB_NAMES: "Load_A",
    }
    const { code, log } = await start({ ...at(server), ...wrong }).ends()
    expect([code, server.calls.length]).toEqual([2, 0])
    expect(log.match(/FATAL/g)?.length).toBe(1)
    for (const [variable, value] of Object.entries(wrong))
      expect(log).toMatch(new RegExp(`^ {4}${variable} cannot be "${value}": .*write`, "m"))
  })

  // In a pod there is a ServiceAccount, which has to be hidden.
  const isPod = existsSync(SERVICE_ACCOUNT)
  const hiding = ["unshare", "-m", "sh", "-c", `mount -t tmpfs none ${SERVICE_ACCOUNT} && exec "$0" "$@"`]
  test.skipIf(isPod && !canUnshare("-m"))(
    "J18 no configuration: the places looked at are named, and k3s'",
    async () => {
      const { code, log } = await start({ HOME: alone, JOB_NAMES: "load-a" }, [], isPod ? hiding : []).ends()
      expect(code).toBe(2)
      expect(log).toMatch(
        oneLine(
          /no cluster is configured: KUBECONFIG is not set.*serviceaccount nor .*\.kube\/config\. .*\/k3s\/k3s\.yaml/,
        ),
      )
    },
  )

  const good = kubeconfigOf("https://127.0.0.1:1")
  const empty = { apiVersion: "v1", kind: "Config", clusters: null, contexts: null, users: null, "current-context": "" }
  const useless: [string, () => string, RegExp][] = [
    ["with nothing but nulls", () => file(empty), /current-context is missing/],
    ["of zero bytes", () => file(""), /it is empty/],
    ["that is missing", () => join(folder, "missing"), /there is no such file/],
    [
      "that is missing, as is the second",
      () => `${join(folder, "missing")}:${join(folder, "missing-too")}`,
      /there is no such file/,
    ],
    ["that is a folder", () => folder, /cannot read/],
    ["that is no YAML", () => file("{{{"), /cannot read/],
    ["that is a text", () => file("hello"), /cannot read/],
    ["whose current-context is nowhere", () => file({ ...good, "current-context": "there" }), /there/],
    ["whose context has no cluster", () => file({ ...good, clusters: null }), /home/],
    ["whose context has no user", () => file({ ...good, users: [] }), /me/],
    ["whose cluster has no server", () => file({ ...good, clusters: [{ name: "home", cluster: {} }] }), /home/],
    [
      "with a socks proxy",
      () => file(kubeconfigOf("https://127.0.0.1:1", { "proxy-url": "socks5://127.0.0.1:1080" })),
      /proxy-url must be a URL that begins with http/,
    ],
  ]
  test("E08 a kubeconfig that leads nowhere: one line names it and what is missing, exit code 2", async () => {
    const look = async ([what, path, missing]: (typeof useless)[number]) => {
      const KUBECONFIG = path()
      const { code, log } = await start({ KUBECONFIG, LOG_LEVEL: "critical" }).ends()
      expect([what, code, log]).toEqual([what, 2, expect.stringMatching(oneLine(new RegExp(`.*${missing.source}.*`)))])
      for (const name of KUBECONFIG.split(":")) expect(log).toContain(name)
    }
    for (const one of useless) await look(one)
  })
})

describe("The way to the cluster", () => {
  test("a server that does not tell its version is served", async () => {
    const server = await serve(quiet(({ line }) => (line === "GET /version" ? {} : undefined)))
    await start(at(server)).says(/cluster +Kubernetes of unknown version at https/)
    await until(() => server.calls.some(({ line }) => line.endsWith("/jobs")))
  })

  test("F01 F17 the binary alone reaches a private CA with a plugin and with a client certificate", async () => {
    const server = await serve(quiet())
    const users = [
      plugin({ token: "P1" }).user,
      { "client-certificate-data": base64(ada.cert), "client-key-data": base64(ada.key) },
      { "client-certificate": file(ada.cert), "client-key": file(ada.key) },
    ]
    for (const user of users) {
      server.calls.length = 0
      const { child, says, ends } = start(at(server, undefined, user))
      await says(works)
      child.kill()
      expect((await ends()).code).toBe(0)
      const { headers, subject } = server.calls[0]!
      expect([headers.authorization, subject]).toEqual("exec" in user ? ["Bearer P1", undefined] : [undefined, "ada"])
    }
  })

  test.skipIf(!canUnshare("-m"))("F01 F17 the binary alone reaches its pod's cluster, past HTTPS_PROXY", async () => {
    const server = await serve(quiet())
    const account = mkdtempSync(join(folder, "sa-"))
    writeFileSync(join(account, "token"), "t0ken\n")
    writeFileSync(join(account, "ca.crt"), trusted.cert)
    const place = "/var/run/secrets/kubernetes.io/serviceaccount"
    const around = [
      "unshare",
      "-m",
      "sh",
      "-c",
      `mount -t tmpfs none /var/run && mkdir -p ${place} && cp ${account}/* ${place} && exec "$0" "$@"`,
    ]
    const env = {
      KUBERNETES_SERVICE_HOST: "127.0.0.1",
      KUBERNETES_SERVICE_PORT: String(server.port),
      HTTPS_PROXY: "http://127.0.0.1:1",
      no_proxy: "x.test",
    }
    const { says, log } = start(env, [], around)
    await says(works)
    expect(log()).toMatch(
      /connecting with the pod's ServiceAccount[\s\S]*HTTPS_PROXY: not used for the API server of this cluster/,
    )
    expect(server.calls[0]?.headers.authorization).toBe("Bearer t0ken")
  })

  test("F01 F03 a server that the CA has not signed is refused, NODE_TLS_REJECT_UNAUTHORIZED or not", async () => {
    const server = await serve(quiet(), { identity: await identityOf(foreign, "127.0.0.1") })
    for (const env of [{}, { NODE_TLS_REJECT_UNAUTHORIZED: "0" }]) {
      const { says } = start({ ...at(server), ...env })
      await says(/WARNING {2}\| Jobs in \S+ cannot be watched, next try in \S+: .*certificate/)
    }
    expect(server.calls).toEqual([])
    expect(readFileSync(join(import.meta.dir, "../../operator.ts"), "utf8")).not.toMatch(
      /NODE_TLS_REJECT_UNAUTHORIZED["'\]]*\s*=[^=]/,
    )
  })

  test("F03 (2) skip-verify works, with one loud warning", async () => {
    const server = await serve(quiet(), { identity: await identityOf(foreign, "127.0.0.1") })
    const { says, log } = start(at(server, { "insecure-skip-tls-verify": true }))
    await says(works)
    expect(log().match(/WARNING .*INSECURE.*/g)).toEqual([expect.stringContaining("insecure-skip-tls-verify")])
    const careful = start(at(await serve(quiet())))
    await careful.says(works)
    expect(careful.log()).not.toContain("INSECURE")
  })

  test("J11 the context in use is named at start", async () => {
    const { says } = start(at(await serve(quiet())))
    await says(/connecting with KUBECONFIG \/\S+, context here\n/)
  })

  test("H34 nothing is sent while Bun would print each request with its token", async () => {
    const server = await serve(quiet())
    const { code, log } = await start({ ...at(server), BUN_CONFIG_VERBOSE_FETCH: "curl" }).ends()
    expect([code, server.calls, log]).toEqual([2, [], expect.stringMatching(/BUN_CONFIG_VERBOSE_FETCH is set/)])
  })

  test("H07 a kubeconfig from a shell's <(command) is read", async () => {
    const server = await serve(quiet())
    const { KUBECONFIG } = at(server)
    const script = 'KUBECONFIG=<(cat "$KUBECONFIG") exec "$0" "$@"'
    const { says } = start({ KUBECONFIG }, [], ["bash", "-c", script])
    await says(works)
    expect(server.calls[0]?.headers.authorization).toBe("Bearer t0ken")
  })

  test("H07 SIGTERM ends the waiting for a FIFO that nobody writes to", async () => {
    const KUBECONFIG = join(folder, "no-writer")
    await $`mkfifo ${KUBECONFIG}`
    const { child, ends } = start({ KUBECONFIG })
    await until(() => readFileSync(`/proc/${child.pid}/comm`, "utf8").startsWith("operator"))
    await Bun.sleep(200) // until it has its handlers; before that it would end all the same
    child.kill()
    expect(await ends()).toMatchObject({ log: expect.stringMatching(/stopp/) })
  })

  test("J12 a plugin does not outlive the program", async () => {
    const pid = file("")
    const script = `echo $$ > ${pid}.new; mv ${pid}.new ${pid}; sleep 1000`
    const { child, ends } = start(
      at(await serve(quiet()), undefined, { exec: { command: "sh", args: ["-c", script] } }),
    )
    await until(() => readFileSync(pid, "utf8") !== "")
    const plugin = readFileSync(pid, "utf8").trim()
    child.kill()
    expect((await ends()).code).toBe(0)
    await until(() => !isAlive(plugin))
  })

  const roots = "/etc/ssl/certs/ca-certificates.crt"
  test.skipIf(!canUnshare("-m") || !existsSync(roots))(
    "H11 a root of the system is trusted for a cluster without a CA, and for NOTIFY_URL",
    async () => {
      const bundle = file(`${readFileSync(roots, "utf8")}\n${foreign.cert}`)
      const around = ["unshare", "-m", "sh", "-c", `mount --bind ${bundle} ${roots} && exec "$0" "$@"`]
      const identity = await identityOf(foreign, "127.0.0.1")
      const phone = await serve(() => "ok", { identity })
      const server = await serve(
        quiet(({ line, query }) =>
          line.endsWith("/jobs") && !query.has("watch")
            ? { metadata: { resourceVersion: "9" }, items: [failed()] }
            : undefined,
        ),
        { identity },
      )
      const env = { ...at(server, {}), NOTIFY_URL: `${phone.address}/topic`, MAX_RESTARTS: "0" }
      start(env, [], around)
      await until(() => phone.calls.length > 0)
      const { says } = start(env)
      await says(/cannot be watched, next try in \S+: .*certificate/)
    },
  )

  test("E05 the proxy of the kubeconfig is named, without its password", async () => {
    const { says, log } = start(at(await serve(quiet()), { "proxy-url": "http://me:s3cr3t-demo@127.0.0.1:1" }))
    await says(/connecting through http:\/\/.*127.0.0.1:1, as the kubeconfig says in proxy-url/)
    await says(/cannot be watched/)
    expect(log()).not.toContain("s3cr3t-demo")
  })

  test("a server that is not up yet is waited for, after the settings are shown", async () => {
    const server = await serve(quiet())
    await server.stop()
    const { says, log } = start(at(server))
    await says(/Jobs in \S+ cannot be watched, next try in/)
    expect(log()).toMatch(/settings\n[\s\S]*RESTART_DELAY[\s\S]*cluster +Kubernetes of unknown version at https/)
    await serve(quiet(), { port: server.port })
    await says(/has no Jobs yet/)
  })

  test("F06 SIGTERM ends the waiting for a server that does not answer", async () => {
    const server = await serve(hang)
    const { child, ends } = start(at(server))
    await until(() => server.calls.length > 0)
    child.kill()
    const { code, log } = await ends()
    expect([code, log]).toEqual([0, expect.stringMatching(/SIGTERM: stopping\n[\s\S]*stopped cleanly\n$/)])
  })
})

describe("The log", () => {
  test("LOG_FORMAT=json is one object a line, LOG_LEVEL leaves out what is below it, stdout stays empty", async () => {
    const env = at(await serve(quiet()))
    const run = async (more: Record<string, string>) => {
      const { child, ends, says } = start({ ...env, ...more })
      await says(/has no Jobs yet/)
      child.kill()
      const { code, stdout, log } = await ends()
      expect([code, stdout]).toEqual([0, ""])
      return log.split("\n").slice(0, -1)
    }
    const lines = await run({ LOG_FORMAT: "json", LOG_LEVEL: "Debug" })
    const records = lines.map((line) => JSON.parse(line) as { time: string; level: string; message: string })
    expect(new Set(records.map(({ level }) => level))).toEqual(new Set(["debug", "info", "warning"]))
    for (const { time, message } of records)
      expect([new Date(time).toISOString(), typeof message]).toEqual([time, "string"])
    expect(await run({ LOG_LEVEL: "warning" })).toEqual([
      expect.stringContaining("no such Job"),
      expect.stringContaining("no Jobs yet"),
    ])
  })

  test("C13 at DEBUG neither token, key, kubeconfig nor manifest is shown, whatever fails", async () => {
    const secret = "s3cr3t-demo"
    const applied = JSON.stringify({ spec: { env: [{ name: "API_KEY", value: secret }] } })
    const live = failed("5", { annotations: { "kubectl.kubernetes.io/last-applied-configuration": applied } })
    Object.assign(live.spec.template.spec.containers[0]!, { env: [{ name: "API_KEY", value: secret }] })
    const server = await serve(
      quiet((call, response) => {
        if (call.line.startsWith("POST") && call.line.endsWith("/jobs")) return refuse(response, 422, "Invalid")
        if (call.line.endsWith("/jobs") && !call.query.has("watch"))
          return { metadata: { resourceVersion: "9" }, items: [live] }
        if (call.line.endsWith("/load-a")) return live
      }),
    )
    const user = {
      token: "t0ken-of-mine",
      "client-certificate-data": base64(ada.cert),
      "client-key-data": base64(ada.key),
    }
    const { says, log } = start({ ...at(server, undefined, user), RESTART_DELAY: "0", LOG_LEVEL: "TRACE" })
    await says(/422 Invalid/)
    for (const hidden of [
      secret,
      "t0ken-of-mine",
      "Bearer",
      "PRIVATE KEY",
      base64(ada.key).slice(0, 40),
      "last-applied",
    ])
      expect(log()).not.toContain(hidden)
  })
})

describe("Health", () => {
  test("off outside a pod unless HEALTH_PORT is set; then there before the API server, on IPv6 and IPv4", async () => {
    const server = await serve(quiet())
    const off = start(at(server))
    await off.says(works)
    expect(off.log()).not.toContain("/livez")
    await server.stop()
    const port = freePort()
    const { says } = start({ ...at(server), HEALTH_PORT: String(port) })
    await says(/cannot be watched/)
    for (const host of ["127.0.0.1", "[::1]"]) {
      const [livez, readyz, metrics] = await Promise.all(
        ["livez", "readyz", "metrics"].map((path) => fetch(`http://${host}:${port}/${path}`)),
      )
      expect([livez?.status, readyz?.status, metrics?.status]).toEqual([200, 503, 200])
      expect(await metrics?.text()).toContain(`flickr_operator_build_info{version="${project.version}"`)
    }
  })

  test("NOTIFY_URL is shown masked, gets a POST for a Job that is given up, and none in a dry run", async () => {
    const posts: string[] = []
    const phone = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      fetch: async (request) => new Response(`${posts.push(await request.text())}`),
    })
    endings.push(() => phone.stop(true))
    const server = await serve(
      quiet(({ line, query }) =>
        line.endsWith("/jobs") && !query.has("watch")
          ? { metadata: { resourceVersion: "9" }, items: [failed()] }
          : undefined,
      ),
    )
    const env = { ...at(server), NOTIFY_URL: `http://me:s3cr3t@127.0.0.1:${phone.port}/s3cr3t`, MAX_RESTARTS: "0" }
    const dry = start({ ...env, DRY_RUN: "true" })
    await dry.says(/given up/)
    const wet = start(env)
    await until(() => posts.length > 0)
    expect(posts).toEqual([expect.stringContaining('"message":"[demo/load-a] given up: ')])
    expect(wet.log()).toContain(` http://127.0.0.1:${phone.port}/***`)
    const wrong = await start({ ...env, NOTIFY_URL: "ftp://s3cr3t" }).ends()
    expect(wrong).toMatchObject({
      code: 2,
      log: expect.stringMatching(/NOTIFY_URL cannot be "\*\*\*": write a URL with http or https/),
    })
    expect(dry.log() + wet.log() + wrong.log).not.toContain("s3cr3t")
  })

  test("a taken port is one warning; the operator works", async () => {
    const taken = Bun.serve({ port: 0, hostname: "::", fetch: () => new Response() })
    endings.push(() => taken.stop(true))
    const { says, log } = start({ ...at(await serve(quiet())), HEALTH_PORT: String(taken.port) })
    await says(works)
    expect(log().match(/WARNING .*HEALTH_PORT.*/g)?.length).toBe(1)
  })
})

function freePort(): number {
  const server = Bun.serve({ port: 0, hostname: "::", fetch: () => new Response() })
  const { port } = server
  server.stop(true)
  return port as number
}

function canUnshare(...flags: string[]): boolean {
  try {
    return Bun.spawnSync(["unshare", ...flags, "true"]).exitCode === 0
  } catch {
    return false
  }
}

describe("F10 SIGTERM", () => {
  const oneFailed = (more: Handler = hang) =>
    quiet(
      (call, response) =>
        more(call, response) ??
        (/\/jobs$/.test(call.line) && !call.query.has("watch")
          ? { metadata: { resourceVersion: "9" }, items: [failed()] }
          : undefined),
    )
  /** Ends of itself, with code 0 and no complaint. */
  const endsWell = async ({ child, ends }: ReturnType<typeof start>, pid = child.pid) => {
    process.kill(pid, "SIGTERM")
    const { code, log } = await ends()
    expect([code, log]).toEqual([0, expect.stringMatching(/SIGTERM: stopping\n[\s\S]*stopped cleanly\n$/)])
    expect(log).not.toMatch(/\| (FATAL|ERROR)|rejection/)
    return log
  }

  test("(1) idle in a watch, and while polling", async () => {
    const server = await serve(quiet())
    const watching = start(at(server))
    await until(() => server.calls.filter(({ query }) => query.has("watch")).length === 2)
    await endsWell(watching)
    const old = {
      status: {
        incomplete: false,
        resourceRules: [{ verbs: ["get", "list", "create", "delete"], apiGroups: ["batch"], resources: ["jobs"] }],
      },
    }
    const polling = start(at(await serve(quiet(({ line }) => (line.endsWith("reviews") ? old : undefined)))))
    await polling.says(/has no Jobs yet/)
    await endsWell(polling)
  })

  test("(2) during the delay", async () => {
    const waiting = start({ ...at(await serve(oneFailed())), RESTART_DELAY: "3650d" })
    await waiting.says(/will be restarted at/)
    await endsWell(waiting)
  })

  test("(4) during a log read", async () => {
    const pod = {
      metadata: {
        name: "q1",
        namespace: "demo",
        uid: "Q1",
        labels: { "batch.kubernetes.io/job-name": "load-a" },
        ownerReferences: [{ kind: "Job", uid: "U1", controller: true }],
      },
      status: { phase: "Failed", containerStatuses: [{ name: "worker", state: { terminated: { exitCode: 3 } } }] },
    }
    const server = await serve(
      oneFailed(({ line, query }, response) => {
        if (line.endsWith("/log")) return void response.write("half a li")
        if (line.endsWith("/pods") && !query.has("watch")) return { metadata: { resourceVersion: "9" }, items: [pod] }
      }),
    )
    const reading = start(at(server))
    await until(() => server.calls.some(({ line }) => line.endsWith("/log")))
    await endsWell(reading)
  })

  const restarting = async () => {
    const server = await startApiServer({ ...FAST, attemptsPer: "name" })
    endings.push(() => server.close())
    server.addUser("operator", OPERATOR_ROLE)
    server.model.put({ kind: "Namespace", metadata: { name: "demo" } })
    const script = JSON.stringify([{ runMs: 10, containers: { worker: { exitCode: 3 } } }, {}])
    const template = {
      metadata: { annotations: { [SCRIPT]: script } },
      spec: { restartPolicy: "Never", containers: [{ name: "worker", image: "busybox" }] },
    }
    const body = {
      apiVersion: "batch/v1",
      kind: "Job",
      metadata: { name: "load-a" },
      spec: { backoffLimit: 0, template },
    }
    server.model.request({ verb: "create", resource: "jobs", group: "batch", namespace: "demo", body })
    const names = () => {
      const { body } = server.model.request({ verb: "list", resource: "jobs", group: "batch", namespace: "demo" })
      return (body as { items: { metadata: { name: string } }[] }).items.map(({ metadata }) => metadata.name)
    }
    const deletes = () => server.calls.filter(({ verb, name }) => verb === "delete" && name === "load-a").length
    return {
      server,
      names,
      deletes,
      env: {
        KUBECONFIG: server.writeKubeconfig(mkdtempSync(join(folder, "kube-")), { user: "operator" }),
        RESTART_DELAY: "0",
      },
    }
  }

  test("(3) between DELETE and POST: the restart is finished first", async () => {
    const { server, names, deletes, env } = await restarting()
    server.fault({ verb: "delete", resource: "jobs", name: "load-a" }, { delayMs: 300 })
    const operator = start(env)
    await until(() => deletes() === 1)
    expect(await endsWell(operator)).toMatch(/restarted in/)
    expect(names()).toEqual(["load-a"])
  })

  test("(3) where the new Job cannot be made in time, a second signal ends it, and the intent stays", async () => {
    const { server, names, env } = await restarting()
    // All but the dry run that comes before the delete.
    const isReal = ({ query, body }: { query: object; body?: unknown }) =>
      !("dryRun" in query) && JSON.stringify(body).includes('"name":"load-a"')
    server.fault({ verb: "create", resource: "jobs", when: isReal }, { status: 503 }, { times: 1_000 })
    const operator = start(env)
    await operator.says(/503/)
    operator.child.kill()
    await operator.says(/stopping/)
    await endsWell(operator)
    expect(names()).toEqual([expect.stringMatching(/.+/)])
    expect(names()).not.toEqual(["load-a"])
  })

  test.skipIf(!canUnshare("-fp", "--mount-proc"))("as process 1 of its own pid namespace", async () => {
    const first = start(at(await serve(quiet())), [], ["unshare", "-fp", "--kill-child", "--mount-proc"])
    await first.says(works)
    const { pid } = first.child
    await endsWell(first, Number(readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8")))
  })
})
