/**
 * The dashboard: one page, served on the admin's own machine, with the rights of the admin's kubeconfig. cli.ts loads
 * this file for the command `dashboard`; the page itself is dashboard.html.
 *
 * 1 What it shows and does · 2 Who may see it
 */
import { timingSafeEqual } from "node:crypto"
import { networkInterfaces } from "node:os"
import {
  type CommandContext,
  CommandError,
  decisiveSettings,
  explanationOf,
  factsOf,
  Inventory,
  isOverdue,
  type JobStatus,
  jobsOf,
  planRestart,
  print,
  type Resource,
  rejectionsIn,
  reportToStderr,
  runRestart,
  settingsFor,
} from "./cli.ts"
import dashboardPage from "./dashboard.html" with { type: "text" }
import {
  ApiError,
  backoffMs,
  decideOnWish,
  type Env,
  evidenceLines,
  gatherEvidence,
  type Job,
  jsonText,
  type Metadata,
  messageOf,
  nowOf,
  overridesOf,
  PREFIX,
  printable,
  RECORD,
  readRecord,
  viewJob,
  type World,
} from "./operator.ts"

// ────────────────────────────────────── 1 What it shows and does ──────────────────────────────────────

const POLL_MS = 10_000
const ANSWER_MS = 5_000
/** What Bun adds to a failed fetch is for programmers. */
const BUN_ADVICE = / For more information, pass `verbose: true` .*/
/** By then an operator has recorded a failure. */
const RECORDED_MS = 3_000

/** For JSON.stringify: control and bidi characters become visible. */
const visible = (_: string, value: unknown) => (typeof value === "string" ? printable(value) : value)

/** Keeps an inventory current by watches, and sends what changes to every open page. */
export class Dashboard {
  private readonly inventory: Inventory
  /** Of each Job what the pages draw, as JSON. */
  private readonly lanes = new Map<string, string>()
  private readonly changed = new Set<string>()
  /** What cannot be read right now. `isOutage`: there is no answer at all. */
  private readonly problems = new Map<string, { text: string; isOutage: boolean; sinceAt: number }>()
  private readonly pages = new Set<(message: string) => void>()
  /** Unexplained failures, looked at or about to be. */
  private readonly looked = new Set<string>()
  private looking = Promise.resolve()
  /** When restarts are due, and what the cluster answered to those that are overdue, by uid. */
  private readonly dueAt = new Map<string, number>()
  private readonly rejections = new Map<string, string>()

  constructor(
    private readonly world: World,
    private readonly env: Env,
    private settings: string,
  ) {
    this.inventory = new Inventory(world)
  }

  /** Resolves once everything was listed, or could not be. */
  async start(): Promise<void> {
    const { config } = this.world
    const first = config.namespaces.flatMap((namespace) =>
      (["jobs", "configmaps"] as const).map(
        (resource) => new Promise<void>((ready) => void this.listAndWatch(namespace, resource, ready)),
      ),
    )
    await Promise.all(first)
    this.update()
    void this.checkServer()
  }

  /** Sends everything now and every change later, until the returned function is called. */
  open(page: (message: string) => void): () => void {
    this.pages.add(page)
    this.update()
    page(this.messageFor(this.facts(), this.lanes.values()))
    return () => void this.pages.delete(page)
  }

  private facts(): object {
    const { namespaces, jobNames, jobSelector } = this.world.config
    const selection = { jobNames, jobSelector: jobSelector?.text, settings: this.settings }
    const problems = Object.fromEntries(this.problems)
    return { isAll: true, address: this.world.cluster.address, namespaces, ...selection, problems }
  }

  private messageFor(facts: object, lanes: Iterable<string>): string {
    const head = JSON.stringify({ ...facts, now: nowOf(this.world) }, visible)
    return `${head.slice(0, -1)},"lanes":[${[...lanes].join()}]}`
  }

  private send(facts: object, lanes: Iterable<string> = []): void {
    const message = this.pages.size > 0 ? this.messageFor(facts, lanes) : ""
    for (const page of this.pages) page(message)
  }

  /** Lists once, then watches; after an outage, or where watching is forbidden, lists again. */
  private async listAndWatch(namespace: string, resource: Resource, ready: () => void): Promise<void> {
    const { clock, stop } = this.world
    const what = `${resource} in ${namespace}`
    for (let attempt = 0; !stop.aborted; attempt++) {
      try {
        const version = await this.list(namespace, resource)
        this.report(what)
        ready()
        attempt = 0
        await this.watch(namespace, resource, version)
      } catch (error) {
        this.report(what, error)
        ready()
        await clock.sleep(Math.min(5_000, backoffMs(attempt, clock.random(), error)), stop)
      }
    }
  }

  private async list(namespace: string, resource: Resource): Promise<string> {
    const { cluster, stop } = this.world
    const keep = (job: Job): Job => ({ ...job, metadata: { ...job.metadata, managedFields: [] } })
    const { items, resourceVersion } =
      resource === "jobs"
        ? await cluster.listJobs(namespace, "", keep, stop)
        : await cluster.listConfigMaps(namespace, RECORD, stop)
    for (const [key, entry] of this.inventory.entries) {
      if (!key.startsWith(`${namespace}/`)) continue
      if (resource === "jobs") Object.assign(entry, { job: undefined, intents: new Map() })
      else entry.records.clear()
      this.onChange(key)
    }
    for (const item of items) this.onEvent(resource, "LISTED", "spec" in item ? item : { metadata: item as Metadata })
    return resourceVersion
  }

  private async watch(namespace: string, resource: Resource, resourceVersion: string): Promise<void> {
    const { cluster, clock, stop } = this.world
    const options = { silenceMs: 150_000, resourceVersion, ...(resource === "configmaps" && { selector: RECORD }) }
    try {
      while (!stop.aborted) {
        const beganAt = clock.now()
        for await (const { type, object } of cluster.watch(namespace, resource, options, stop)) {
          options.resourceVersion = object.metadata?.resourceVersion ?? options.resourceVersion
          if (type !== "BOOKMARK") this.onEvent(resource, type, object)
        }
        if (clock.now() - beganAt < 1_000 && !stop.aborted) throw new Error("the watch ended at once")
      }
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 403)) throw error
      await clock.sleep(POLL_MS, stop)
    }
  }

  private onEvent(resource: Resource, type: string, object: Pick<Job, "metadata">): void {
    if (object.metadata?.labels?.[RECORD] !== "settings") this.onChange(this.inventory.take(resource, type, object))
    else if (type !== "LISTED") this.loadSettings().catch((error) => this.report("settings", error))
  }

  private onChange(key: string): void {
    if (this.changed.size === 0) setTimeout(() => this.update(), 150)
    this.changed.add(key)
  }

  private async loadSettings(): Promise<void> {
    const { config } = this.world
    const fresh = await settingsFor(this.world, config.namespaces[0] ?? "", this.env, true)
    this.world.config = { ...fresh.config, namespaces: config.namespaces }
    this.settings = fresh.from
    for (const key of this.inventory.entries.keys()) this.onChange(key)
    this.send(this.facts(), this.lanes.values())
  }

  /** Sends the lanes that have changed. */
  private update(): void {
    const before = new Map([...this.changed].map((key) => [key, this.lanes.get(key)]))
    for (const key of this.changed) {
      const status = this.inventory.statusOf(key)
      this.dueAt.delete(key)
      if (status) this.lanes.set(key, JSON.stringify(this.laneOf(status), visible))
      else this.lanes.delete(key)
      if (status?.unexplained) this.lookAt(status, status.unexplained)
    }
    this.changed.clear()
    const gone = [...before.keys()].filter((key) => before.get(key) && !this.lanes.has(key))
    const lanes = [...before].flatMap(([key, lane]) =>
      this.lanes.get(key) === lane ? [] : (this.lanes.get(key) ?? []),
    )
    if (gone.length > 0 || lanes.length > 0) this.send({ gone }, lanes)
  }

  /** One at a time: with many failures and no records, parallel lists of pods would load the API server. */
  private lookAt(status: JobStatus, moment: string): void {
    if (this.looked.has(moment)) return
    this.looked.add(moment)
    const look = async () => {
      const { key, failedAt = 0 } = status.view
      await this.world.clock.sleep(failedAt + RECORDED_MS - nowOf(this.world), this.world.stop)
      if (this.inventory.statusOf(key)?.unexplained !== moment) return
      await this.inventory.look(status)
      this.onChange(key)
    }
    this.looking = this.looking.then(look).catch(() => void this.looked.delete(moment))
  }

  /** What the pages draw of a Job. */
  private laneOf(status: JobStatus) {
    const { view, failure } = status
    const { key, uid, phase, startedAt, completedAt, failedAt, reason } = view
    const isLate = isOverdue(status, nowOf(this.world))
    const facts = factsOf(status, isLate ? this.rejections.get(uid) : undefined)
    if (facts.nextRestartAt !== undefined) this.dueAt.set(key, facts.nextRestartAt)
    const records = this.inventory.recordsOf(key)
    const failures = records.map(({ name, startedAt, failedAt, cause, restarts, summary }) => {
      return { name, startedAt, failedAt, cause, inRow: restarts + 1, summary }
    })
    const unrecorded = { name: "", startedAt, cause: failure.cause, inRow: facts.failuresInRow, summary: reason }
    if (failedAt !== undefined && records.at(-1)?.uid !== uid) failures.push({ ...unrecorded, failedAt })
    const manual = decideOnWish(view)
    const notRestartable = manual.do === "restart" ? undefined : manual.because
    const { paused } = overridesOf(view, this.world.config)
    return { ...facts, phase, startedAt, completedAt, failures, isPaused: paused, notRestartable }
  }

  /** Everything about one Job: its decision, the rules and the settings behind it. */
  detailOf(key: string): object | undefined {
    const status = this.inventory.statusOf(key)
    const settings = [this.settings, ...decisiveSettings(this.world)]
    return status && { ...explanationOf(status, this.world), settings }
  }

  /** The evidence of one failure: from its record or, without a name, from the pods that are left. */
  async evidenceOf(key: string, name: string): Promise<object | undefined> {
    const { cluster, stop } = this.world
    const { job, records } = this.inventory.entries.get(key) ?? {}
    const past = records?.get(name)
    const map = past && (await cluster.getConfigMap(past.namespace, name, stop))
    const record = map && readRecord(map)
    if (record) return { decided: past?.decided, reason: record.reason, lines: evidenceLines(record.evidence) }
    if (name || !job) return undefined
    return { lines: evidenceLines(await gatherEvidence(this.world, viewJob(job), [])) }
  }

  /** Without an error: it can be read again. */
  private report(what: string, error?: unknown): void {
    if (this.world.stop.aborted || (error === undefined && !this.problems.has(what))) return
    const isOutage = !(error instanceof ApiError && error.status < 500)
    const sinceAt = this.problems.get(what)?.sinceAt ?? nowOf(this.world)
    if (error === undefined) this.problems.delete(what)
    else this.problems.set(what, { text: messageOf(error).replace(BUN_ADVICE, ""), isOutage, sinceAt })
    this.send({ problems: Object.fromEntries(this.problems) })
  }

  /** A watch notices a hanging server only after minutes: while a page is open, asks for the server's version. */
  private async checkServer(): Promise<void> {
    const { cluster, clock, stop } = this.world
    for (; !stop.aborted; await clock.sleep(POLL_MS, stop)) {
      if (this.pages.size === 0) continue
      const over = new AbortController()
      const late = clock.sleep(ANSWER_MS, stop, over.signal).then(() => Promise.reject(new Error("it does not answer")))
      const answer = Promise.race([cluster.version(over.signal), late])
      const error = await answer.then(() => {}).catch((error: unknown) => error)
      over.abort(new Error("stopped"))
      this.report("API server", error instanceof ApiError ? undefined : error)
      await this.readRejections()
      // Also keeps the connection of the page alive.
      this.send({})
    }
  }

  private async readRejections(): Promise<void> {
    const overdue = [...this.dueAt].flatMap(([key, dueAt]) => (dueAt <= nowOf(this.world) ? [key] : []))
    for (const namespace of new Set(overdue.map((key) => key.slice(0, key.indexOf("/")))))
      for (const [uid, text] of await rejectionsIn(this.world, namespace)) this.rejections.set(uid, text)
    for (const key of overdue) this.onChange(key)
  }

  /** Does what a person has confirmed on the page. Throws an error whose words the page shows. */
  async act(action: string, key: string, uid: string): Promise<string> {
    const { cluster, config, kill } = this.world
    const [job] = jobsOf({ names: [key], namespaces: config.namespaces })
    if (!config.namespaces.includes(job.namespace)) throw new CommandError(3, `${job.namespace} is not shown here`)
    const live = await cluster.getJob(job.namespace, job.name, kill)
    if (live && live.metadata?.uid !== uid) throw new CommandError(3, `${key} was replaced in the meantime: look again`)
    if (action === "restart") {
      const plan = await planRestart(this.world, job)
      if ("rejection" in plan) throw new CommandError(3, plan.rejection)
      const { result, details } = await runRestart(this.world, plan)
      if (!/^re(started|placed)$/.test(result)) throw new CommandError(3, [result, details].filter(Boolean).join(": "))
      return `${key} is ${result}, ${details}`
    }
    if (!live) throw new CommandError(3, `there is no Job ${key}`)
    await cluster.annotateJob(viewJob(live), { [`${PREFIX}paused`]: action === "pause" ? "true" : null }, kill)
    return `${key} is ${action}d`
  }
}

// ─────────────────────────────────────────── 2 Who may see it ─────────────────────────────────────────

const ROUTES: Record<string, "GET" | "POST"> = {
  "/": "GET",
  "/events": "GET",
  "/job": "GET",
  "/failure": "GET",
  "/restart": "POST",
  "/pause": "POST",
  "/resume": "POST",
}
/** TypeScript takes an import of HTML for a bundle. */
const page = dashboardPage as unknown as string
const hashes = (tag: string) =>
  [...page.matchAll(new RegExp(`<${tag}>([^]*?)</${tag}>`, "g"))]
    .map(([, text = ""]) => `'sha256-${new Bun.CryptoHasher("sha256").update(text).digest("base64")}'`)
    .join(" ")

/** On every answer: nothing is kept, nothing leaks, and the page runs nothing but its own style and script. */
const securityHeaders = () => ({
  "Cache-Control": "no-store",
  "Content-Security-Policy": [
    `default-src 'none'; script-src ${hashes("script")}; style-src ${hashes("style")}`,
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "require-trusted-types-for 'script'; trusted-types 'none'",
  ].join("; "),
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
})

/** Serves the dashboard on loopback until a signal. */
export async function dashboard(context: CommandContext): Promise<number> {
  const { world, namespaces, env, options, settings } = context
  const content = new Dashboard({ ...world, config: { ...world.config, namespaces } }, env, settings)
  await content.start()
  const site = new Site(content)
  const servers = site.listen(Number(options.port ?? 0))
  const opening = `http://127.0.0.1:${site.port}/?token=`
  const address = opening + site.token
  // Not with context.print(), which masks secrets.
  await print(options.output === "json" ? `${JSON.stringify({ address })}\n` : `Dashboard: ${address}\n`)
  reportToStderr("info", "open this address in a browser; Ctrl-C ends the dashboard")
  if (options["no-open"] === undefined) openBrowser(opening + site.tokenForBrowser, env)
  await new Promise((done) => world.stop.addEventListener("abort", done))
  await Promise.allSettled(site.actions)
  await Promise.all(servers.map((server) => server.stop(true)))
  return 0
}

const newSecret = () => Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64url")
const isSame = (a: string, b: string) => a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b))

/** The page, its events and its actions, for the one who was given the address. */
class Site {
  port = 0
  readonly token = newSecret()
  /** Valid once: the command line of a browser can be read by every user of the machine. */
  tokenForBrowser = newSecret()
  private readonly session = newSecret()
  /** Actions under way: a stop lets them end. */
  readonly actions = new Set<Promise<unknown>>()

  constructor(private readonly dashboard: Dashboard) {}

  /** Listens on 127.0.0.1 and, if the machine has it, ::1. Throws a CommandError if the port is taken. */
  listen(port: number): Bun.Server<undefined>[] {
    const hasIPv6 = Object.values(networkInterfaces()).some((all) => all?.some(({ address }) => address === "::1"))
    const serve = (hostname: string, port: number) =>
      Bun.serve({
        hostname,
        port,
        development: false,
        // Without this, Bun 1.4.5 shares the port with every other process if development is off.
        reusePort: false,
        idleTimeout: 0,
        maxRequestBodySize: 10_000,
        fetch: (request) => this.answer(request),
        error: () => new Response("", { status: 500 }),
      })
    for (let attempt = 1; ; attempt++) {
      const servers: Bun.Server<undefined>[] = []
      try {
        servers.push(serve("127.0.0.1", port))
        this.port = servers[0]?.port ?? 0
        if (hasIPv6) servers.push(serve("::1", this.port))
        return servers
      } catch (error) {
        for (const server of servers) void server.stop(true)
        const advice = `cannot listen on port ${port || this.port} of 127.0.0.1 and ::1, choose another with --port`
        if (port !== 0 || attempt === 5) throw new CommandError(2, `${advice}: ${messageOf(error)}`)
      }
    }
  }

  private async answer(request: Request): Promise<Response> {
    const url = new URL(request.url)
    const token = url.pathname === "/" ? url.searchParams.get("token") : null
    const headers = new Headers(securityHeaders())
    const status = this.rejection(request, url.pathname, token)
    if (status) return new Response("", { status, headers })
    if (token !== null) {
      headers.set("Set-Cookie", `${this.cookie()}=${this.session}; HttpOnly; SameSite=Strict; Path=/`)
      // Not a 3xx: after a click in another site, such as a web terminal, browsers send no Strict cookie along a
      // redirect.
      headers.set("Refresh", "0; url=/")
      return new Response("", { headers })
    }
    if (url.pathname === "/events") return this.events(headers)
    headers.set("Content-Type", url.pathname === "/" ? "text/html; charset=utf-8" : "application/json")
    if (url.pathname === "/") return new Response(page, { headers })
    const { code, body } = await this.respond(request, url)
    return new Response(jsonText(body), { status: code, headers })
  }

  /** Cookies know no ports: without the port in its name, a second dashboard would end the first one's session. */
  private cookie = () => `dashboard-${this.port}`

  /** The status for a request that is not from the admin's own page (DNS rebinding, other sites' forms). */
  private rejection({ method, headers }: Request, path: string, token: string | null): number | undefined {
    const host = headers.get("host") ?? ""
    const isOurs = ["127.0.0.1", "[::1]", "localhost"].some((name) => host === `${name}:${this.port}`)
    const origin = headers.get("origin") ?? (method === "GET" ? `http://${host}` : "")
    if (!isOurs || origin !== `http://${host}` || !(token === null ? this.hasSession(headers) : this.isToken(token)))
      return 403
    if (!Object.hasOwn(ROUTES, path)) return 404
    if (ROUTES[path] !== method) return 405
    return method === "POST" && headers.get("content-type") !== "application/json" ? 403 : undefined
  }

  private hasSession(headers: Headers): boolean {
    const cookies = new Bun.CookieMap(headers.get("cookie") ?? "")
    return isSame(cookies.get(this.cookie()) ?? "", this.session)
  }

  private isToken(token: string): boolean {
    if (isSame(token, this.token)) return true
    const isBrowsers = isSame(token, this.tokenForBrowser)
    if (isBrowsers) this.tokenForBrowser = newSecret()
    return isBrowsers
  }

  private events(headers: Headers): Response {
    headers.set("Content-Type", "text/event-stream")
    let close = () => {}
    const start = (stream: ReadableStreamDefaultController<string>) => {
      close = this.dashboard.open((message) => {
        // A page that no longer reads, as in a sleeping tab, is cut off: when it connects again, it gets everything
        // anew.
        if ((stream.desiredSize ?? 0) > -100) return stream.enqueue(`data: ${message}\n\n`)
        close()
        stream.close()
      })
    }
    return new Response(new ReadableStream({ start, cancel: () => close() }), { headers })
  }

  private async respond(request: Request, url: URL): Promise<{ code: number; body: object }> {
    try {
      if (request.method === "POST") {
        const { job, uid } = (await request.json()) as { job: unknown; uid: unknown }
        const action = this.dashboard.act(url.pathname.slice(1), String(job), String(uid))
        this.actions.add(action)
        return { code: 200, body: { text: await action.finally(() => this.actions.delete(action)) } }
      }
      const job = url.searchParams.get("job") ?? ""
      const body =
        url.pathname === "/job"
          ? this.dashboard.detailOf(job)
          : await this.dashboard.evidenceOf(job, url.searchParams.get("record") ?? "")
      return body ? { code: 200, body } : { code: 404, body: { error: "not there any more" } }
    } catch (error) {
      return { code: 409, body: { error: messageOf(error) } }
    }
  }
}

/** Opens the browser, if there is one; whoever has none has the printed address. */
function openBrowser(address: string, { DISPLAY, WAYLAND_DISPLAY }: Env): void {
  const isDesktop = process.platform !== "linux" || DISPLAY || WAYLAND_DISPLAY
  const opener = { darwin: "open", win32: "explorer" }[process.platform as string] ?? "xdg-open"
  if (isDesktop && Bun.which(opener)) Bun.spawn([opener, address], { stdio: ["ignore", "ignore", "ignore"] }).unref()
}
