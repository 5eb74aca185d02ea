// The image and deploy/, run in a cluster of .dev/cluster as users run them in theirs. Needs beside what main.ts needs:
//   E2E_NODE_DIR   the DIR of up.sh --node: the image is loaded into its containerd
// and root, buildah, debootstrap and qemu-user-static (see cluster/packages.sh). Without E2E_NODE_DIR all of it is
// skipped.
//   bun .dev/e2e/image.ts [GROUPS]     these checks alone
//   bun .dev/e2e/image.ts build        only builds, so that the next run finds all layers in buildah's cache
//                                      (KUBECONFIG may name a cluster that is down)
import { mkdir, readdir, readFile, rm } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import project from "../../package.json" with { type: "json" }
import {
  applyExample,
  audited,
  chosen,
  deploy,
  deployNamespace,
  type Ended,
  healthPortOf,
  isReady,
  logOf,
  name,
  nodeDir,
  ofOperator,
  operatorJob,
  operatorPod,
  overlay,
  type Pod,
  podGroup,
  podsOf,
  type Rule,
  rbac,
  reference,
  removeVolume,
  restartsOf,
  rightsOf,
  rulesOf,
  says,
  scaleToNothing,
} from "./deployment.ts"
import {
  abandon,
  allGone,
  type Check,
  call,
  check,
  close,
  content,
  counted,
  differences,
  failedAt,
  failingJob,
  jobThat,
  must,
  Namespace,
  need,
  prefix,
  root,
  runningJob,
  Skip,
  seconds,
  type Thing,
  until,
  work,
} from "./kit.ts"
import { kubectl, kubectlProgram, run, tryCommand } from "./programs.ts"

const platforms = ["amd64", "arm64"] as const
const now = () => performance.now()
const mebibytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`

// ---------------------------------------------------------------- the image

type Image = {
  platform: string
  folder: string
  layers: string[]
  compressed: number
  unpacked: number
  config: ImageConfig
}
type ImageConfig = { User?: string; Entrypoint?: string[]; Cmd?: string[]; Labels?: Record<string, string> }

/** Builds the Dockerfile for a platform on stand-ins for its base images, which no registry has to be asked for. */
async function build(platform: string): Promise<string> {
  const dockerfile = await readFile(join(root, "Dockerfile"), "utf8")
  const [base, bun] = [/^ARG BASE=(.*)$/m, /^FROM .*?(\S+) AS build$/m].map((pattern) => pattern.exec(dockerfile)![1]!)
  for (const image of [base!, bun!]) {
    const standIn = image.includes("distroless") ? `localhost/stand-in-${platform}` : image
    if ((await tryCommand(["buildah", "inspect", "--type", "image", standIn])).code !== 0)
      await run(".dev/cluster/base-images.sh", image)
  }
  const options = [
    "--layers",
    "--pull-never",
    "--isolation",
    "chroot",
    "--network",
    "host",
    "--build-arg",
    "BUILDPLATFORM=linux/amd64",
  ]
  const tag = `localhost/${name}:${platform}`
  await run("buildah", "bud", ...options, "--platform", `linux/${platform}`, "-t", tag, ".")
  return tag
}

/** Writes an image to a folder as it lies in a registry, and reads what it is. */
async function unpack(tag: string, platform: string): Promise<Image> {
  const folder = join(work, `image-${platform}`)
  await run("buildah", "push", "-q", tag, `oci:${folder}`)
  const blob = (digest: string) => join(folder, "blobs", digest.replace(":", "/"))
  const json = async <T>(file: string) => JSON.parse(await readFile(file, "utf8")) as T
  const index = await json<{ manifests: { digest: string }[] }>(join(folder, "index.json"))
  type Part = { digest: string; size: number }
  const manifest = await json<{ config: Part; layers: Part[] }>(blob(index.manifests[0]!.digest))
  const layers = manifest.layers.map(({ digest }) => blob(digest))
  let unpacked = 0
  for (const layer of layers) unpacked += Bun.gunzipSync(await Bun.file(layer).bytes()).length
  const compressed = manifest.layers.reduce((sum, { size }) => sum + size, 0)
  const { config } = await json<{ config: ImageConfig }>(blob(manifest.config.digest))
  return { platform, folder, layers, compressed, unpacked, config }
}

const image = async () => {
  if (!nodeDir)
    return check("image", "the image and deploy/ in a cluster", () =>
      Promise.reject(new Skip("E2E_NODE_DIR is not set")),
    )
  for (const platform of platforms) {
    let built: Image | undefined
    await check("image", `linux/${platform}: the Dockerfile builds; its size`, async () => {
      built = await unpack(await build(platform), platform)
      return `compressed ${mebibytes(built.compressed)}, unpacked ${mebibytes(built.unpacked)}`
    })
    if (!built) continue
    const { config, layers } = built
    await check(
      "image",
      `linux/${platform}: the binary and its licences on the base image, a numeric user, an entrypoint alone, labels`,
      async () => {
        const files = (await run("tar", "tzf", layers.at(-1)!)).split("\n").filter((file) => !file.endsWith("/"))
        need(files.toSorted().join() === `LICENSE.txt,THIRD-PARTY-NOTICES.txt,${name}`, `the last layer has ${files}`)
        const { Labels = {}, ...rest } = config
        need(
          rest.User === "65532:65532" && !rest.Cmd && Bun.deepEquals(rest.Entrypoint, [`/${name}`]),
          JSON.stringify(rest),
        )
        const label = (field: string) => Labels[`org.opencontainers.image.${field}`]
        need(
          label("version") === project.version && label("licenses") === project.license && label("source"),
          JSON.stringify(Labels),
        )
      },
    )
    if (platform === "arm64")
      await check("image", "linux/arm64: --version and --help run in an emulator", () => emulated(layers))
  }
  await check("image", "linux/amd64: the node's containerd takes it", load)
  return true
}

async function emulated(layers: string[]): Promise<string> {
  const folder = join(work, "arm64")
  await mkdir(folder)
  for (const layer of layers) await run("tar", "xzf", layer, "-C", folder, "--exclude=dev/*")
  const arm = (argument: string) => run("qemu-aarch64-static", "-L", folder, join(folder, name), argument)
  const version = await arm("--version")
  const help = await arm("--help")
  need(version === project.version, version)
  need(help.includes("JOB_SELECTOR"), help)
  return version
}

/** Under the very names that deploy/ uses, so that nothing there has to be changed. */
async function load(): Promise<string> {
  const archive = join(work, "image.tar")
  await run("buildah", "push", "-q", `localhost/${name}:amd64`, `docker-archive:${archive}:${await reference()}`)
  const images = ["ctr", "-a", join(nodeDir!, "containerd/containerd.sock"), "-n", "k8s.io", "images"]
  await run(...images, "import", archive)
  await run(...images, "tag", "--force", "docker.io/local/busybox:1", "docker.io/library/busybox:1.37")
  await rm(archive)
  return reference()
}

/** The process of a pod that runs the operator. */
async function processOf(pod: Pod): Promise<string> {
  for (const pid of (await readdir("/proc")).filter((entry) => /^\d+$/.test(entry))) {
    const [groups, command] = await Promise.all(
      ["cgroup", "cmdline"].map((file) => readFile(`/proc/${pid}/${file}`, "utf8").catch(() => "")),
    )
    if (groups!.includes(pod.metadata.uid) && command!.startsWith(`/${name}`)) return pid
  }
  throw new Error("no process of the operator's pod found on this machine")
}

async function confinement(pod: Pod): Promise<string> {
  const pid = await processOf(pod)
  const status = await readFile(`/proc/${pid}/status`, "utf8")
  const field = (key: string) => new RegExp(`^${key}:\\s+(.*)$`, "m").exec(status)?.[1]
  const found = ["Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"].map(field)
  const id = "65532\t65532\t65532\t65532"
  const wanted = [id, id, "0".repeat(16), "0".repeat(16), "1", "2"]
  need(Bun.deepEquals(found, wanted), found.join(", "))
  const mounts = (await readFile(`/proc/${pid}/mountinfo`, "utf8")).split("\n").map((line) => line.split(" "))
  need(mounts.find((m) => m[4] === "/")?.[5]?.startsWith("ro"), "its root can be written")
  return "uid 65532, no capabilities, no new privileges, seccomp filter"
}

type Memory = { workingSet: number; anonymous: number; most: number }

/** Of the pod's cgroup, its pause container included; version 1 or 2 of cgroups. */
async function memoryOf(pod: Pod): Promise<Memory> {
  const lines = (await readFile(`/proc/${await processOf(pod)}/cgroup`, "utf8"))
    .split("\n")
    .map((line) => line.split(":"))
  const v1 = lines.find(([, controller]) => controller === "memory")
  const group = dirname((v1 ?? lines.find(([id]) => id === "0"))![2]!)
  const folder = join(v1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup", group)
  const number = async (file: string) => Number(await readFile(join(folder, file), "utf8").catch(() => Number.NaN))
  const stat = await readFile(join(folder, "memory.stat"), "utf8")
  const field = (key: string) => Number(new RegExp(`^${key} (\\d+)$`, "m").exec(stat)?.[1])
  const used = await number(v1 ? "memory.usage_in_bytes" : "memory.current")
  const most = await number(v1 ? "memory.max_usage_in_bytes" : "memory.peak")
  return {
    workingSet: used - field(v1 ? "total_inactive_file" : "inactive_file"),
    anonymous: field(v1 ? "total_rss" : "anon"),
    most,
  }
}

// ---------------------------------------------------------------- from install to uninstall, in deploy/'s namespace

const lifeCycle = () => {
  const ns = new Namespace(deployNamespace)
  const body = async (_: Namespace, check: Check) => {
    need((await call("GET", `/api/v1/namespaces/${ns.name}`)).status === 404, `there is a namespace ${ns.name} already`)
    try {
      const pod = await install(ns, check)
      await example(ns, check)
      const second = await newSettings(ns, check, pod)
      const third = await podDeleted(ns, check, second)
      await idle(ns, check, third)
      await busy(ns, check, third)
      await byHand(ns, check)
      await uninstall(ns, check)
    } finally {
      await ns.remove()
      await removeVolume(ns)
      await until(
        "the namespace is gone",
        async () => (await call("GET", `/api/v1/namespaces/${ns.name}`)).status === 404,
        90_000,
      )
    }
  }
  return podGroup("deploy", body, ns)
}

async function install(ns: Namespace, check: Check): Promise<Pod> {
  await kubectl("create", "namespace", ns.name)
  let pod: Pod | undefined
  await check("apply -k deploy/: the operator runs, and may do all that it needs", async () => {
    const begun = now()
    await deploy(ns)
    pod = await operatorPod(ns)
    const up = now()
    await says(ns, "that the Role suffices", ["the Role allows everything that is needed"])
    return `pod up after ${seconds(up - begun)}, its line seen after ${seconds(now() - begun)}`
  })
  need(pod, "the operator does not run")
  await check("its probes work: it becomes ready, and the kubelet can read its metrics' port", async () => {
    await until("it is ready", async () => isReady((await podsOf(ns))[0]))
    const answers = ["livez", "readyz", "metrics"].map((path) => fetch(`http://127.0.0.1:${healthPortOf(ns)}/${path}`))
    need(
      (await Promise.all(answers)).every(({ ok }) => ok),
      "it does not answer",
    )
  })
  await check("it runs as nobody, on a root that cannot be written", () => confinement(pod!))
  return pod
}

async function example(ns: Namespace, check: Check): Promise<void> {
  await check(
    "example-job.yaml fails once: kubectl logs has the cause, the last line and the time of the restart",
    async () => {
      await applyExample(ns)
      await ns.failed("flickr-downloader-alice")
      await says(ns, "the cause", [/alice\b.* failed at/, "exit:3"])
      await says(ns, "its last line", ["| HTTP 429 Too Many Requests"])
      return says(ns, "when it is restarted", [/alice\b.* restarted at/, /in (1h|59m)/])
    },
  )
}

async function newSettings(ns: Namespace, check: Check, old: Pod): Promise<Pod> {
  const job = await ns.job("flickr-downloader-alice")
  await check("a change of config.env replaces the pod; the example is restarted, and succeeds", async () => {
    await deploy(ns, { settings: { RESTART_DELAY: "5s" } })
    await operatorPod(ns, old)
    const young = await ns.another(job!)
    const changed = differences(content(job!), content(young))
    need(changed.length === 0, `changed: ${changed.join("\n")}`)
    await until("it succeeds", async () =>
      (await ns.job("flickr-downloader-alice"))?.status?.conditions?.some(
        ({ type, status }) => type === "Complete" && status === "True",
      ),
    )
    await ns.noIntent()
    return says(ns, "that it is restarted", [/alice\b.* restarted in/])
  })
  return operatorPod(ns, old)
}

/** Brings a Job to the middle of its restart, and keeps it there until its pods are released. */
async function midway(ns: Namespace, name: string): Promise<{ old: Thing; release: () => Promise<void> }> {
  await ns.create("jobs", operatorJob({ name }))
  const old = await ns.failed(name)
  const pods = await ns.podsOf(old)
  for (const pod of pods) await ns.hold("pods", pod)
  await until("the Job is being deleted", async () => (await ns.job(name))?.metadata.deletionTimestamp)
  const own = (await ns.intents()).filter(({ metadata }) => metadata.labels?.[`${prefix}intent`] === name)
  need(own.length === 1, "not one intent")
  const release = async () => {
    for (const pod of pods) await ns.release("pods", pod)
  }
  return { old, release }
}

async function podDeleted(ns: Namespace, check: Check, first: Pod): Promise<Pod> {
  await check(
    "the operator's pod is deleted in the middle of a restart: it ends with code 0, the next one finishes",
    async () => {
      let ended: Ended | undefined
      await ns.watch("pods", (_, thing) => {
        const pod = thing as Pod
        if (pod.metadata.uid === first.metadata.uid) ended ??= pod.status?.containerStatuses?.[0]?.state.terminated
      })
      const { old, release } = await midway(ns, "slow")
      const begun = now()
      await kubectl("-n", ns.name, "delete", "pod", first.metadata.name) // returns when it is gone
      const took = now() - begun
      const second = await operatorPod(ns, first)
      need((await ns.job("slow"))?.metadata.uid === old.metadata.uid, "the old Job did not stay")
      need(ended?.exitCode === 0, `it ended with ${JSON.stringify(ended)}`)
      await release()
      const young = await ns.another(old)
      const changed = differences(content(old), content(young))
      need(changed.length === 0, `changed: ${changed.join("\n")}`)
      await ns.noIntent()
      need(restartsOf(second) === 0, "the next pod was restarted")
      return `the pod was gone after ${seconds(took)} of its 30 s`
    },
  )
  await kubectl("-n", ns.name, "delete", "job", "slow", "--ignore-not-found")
  return operatorPod(ns, first)
}

const memoryText = ({ workingSet, anonymous, most }: Memory) =>
  `anonymous ${mebibytes(anonymous)}, working set ${mebibytes(workingSet)}, most so far ${mebibytes(most)}`

async function idle(ns: Namespace, check: Check, pod: Pod): Promise<void> {
  const names = Array.from({ length: 20 }, (_, i) => `idle-${i}`)
  for (const name of names) await ns.create("jobs", runningJob({ name, labels: chosen }))
  await check("idle with 20 Jobs: at most 32 MiB of anonymous memory in the pod's cgroup", async () => {
    const running = async () =>
      (await ns.list("pods")).filter((p) => p.metadata.name.startsWith("idle-") && p.status?.phase === "Running")
    await until("20 pods run", async () => (await running()).length === 20, 60_000)
    await Bun.sleep(20_000)
    const memory = await memoryOf(pod)
    const status = await readFile(`/proc/${await processOf(pod)}/status`, "utf8")
    const resident = Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1]) * 1024
    const text = `${memoryText(memory)}; resident, with the files of its image, ${mebibytes(resident)}`
    need(memory.anonymous <= 32 * 2 ** 20, text)
    return text
  })
  for (const name of names) await call("DELETE", ns.path("jobs", name), { propagationPolicy: "Background" })
}

async function busy(ns: Namespace, check: Check, pod: Pod): Promise<void> {
  const names = Array.from({ length: 20 }, (_, i) => `busy-${i}`)
  const script = "yes 'a line of a long log, one of very many of them' | head -c 1500000; exit 3"
  await check(
    "20 Jobs that fail with long logs: all are restarted, within the Deployment's limit of memory",
    async () => {
      for (const name of names) await ns.create("jobs", jobThat(script, { name, labels: chosen }))
      const olds = await Promise.all(names.map((name) => ns.failed(name, 90_000)))
      await Promise.all(olds.map((old) => ns.another(old, 60_000)))
      const text = memoryText(await memoryOf(pod))
      need(
        (await podsOf(ns)).every((p) => p.metadata.uid === pod.metadata.uid && restartsOf(p) === 0),
        "the operator's pod was restarted",
      )
      return text
    },
  )
  for (const name of names) await call("DELETE", ns.path("jobs", name), { propagationPolicy: "Background" })
}

/** Runs that block of shell of a page which has these words in it, as a user would, in another namespace. */
async function recipe(page: string, words: string, ns: Namespace, edit = (script: string) => script): Promise<void> {
  const blocks = (await readFile(join(root, page), "utf8")).matchAll(/```sh\n([^`]*)```/g)
  const found = [...blocks].map(([, text]) => text!).find((text) => text.includes(words))
  need(found, `${page} has no block of shell with ${words}`)
  const bin = join(work, `bin-${ns.name}`)
  await mkdir(bin)
  await run("ln", "-s", Bun.which(kubectlProgram) ?? kubectlProgram, join(bin, "kubectl"))
  const script = edit(found).replaceAll(`-n ${deployNamespace} `, `-n ${ns.name} `)
  const { code, err } = await tryCommand(["bash", "-euo", "pipefail"], script, { PATH: `${bin}:${process.env.PATH}` })
  need(code === 0, `exit code ${code}: ${err}`)
}

async function byHand(ns: Namespace, check: Check): Promise<void> {
  const claim =
    "scaled to 0 in the middle of a restart: the intent stays, and the documented command brings the Job back from it"
  await check(claim, async () => {
    const { old, release } = await midway(ns, "by-hand")
    await scaleToNothing(ns)
    await release()
    await until("the old Job is gone", async () => !(await ns.job("by-hand")))
    const [intent] = await ns.intents()
    need(intent, "no Job and no intent")
    const { name } = intent.metadata
    await recipe("deploy/README.md", "create -f -", ns, (script) => script.replace(/^intent=.*$/m, `intent=${name}`))
    const changed = differences(content(old), content((await ns.job("by-hand"))!))
    need(changed.length === 0, `changed: ${changed.join("\n")}`)
    await ns.noIntent()
  })
}

async function uninstall(ns: Namespace, check: Check): Promise<void> {
  await check(
    "uninstall: scaled to 0 no intent is left, and delete -k takes the operator and nothing of the users",
    async () => {
      await scaleToNothing(ns)
      const intents = await kubectl("-n", ns.name, "get", "jobs", "-l", `${prefix}intent`, "-o", "name")
      need(intents === "", intents)
      const keep = async () =>
        (await kubectl("-n", ns.name, "get", "jobs,persistentvolumeclaims", "-o", "name"))
          .split("\n")
          .filter((n) => !/\/(idle|busy)-/.test(n))
      const before = await keep()
      await kubectl("delete", "-k", await overlay(ns, { settings: { RESTART_DELAY: "5s" } }))
      for (const label of [ofOperator, `${prefix}record`])
        await kubectl("-n", ns.name, "delete", "configmaps", "-l", label)
      need(
        Bun.deepEquals(await keep(), before) && before.length === 3,
        `${before.join(", ")} became ${(await keep()).join(", ")}`,
      )
      const kinds = "deployments,replicasets,configmaps,serviceaccounts,roles,rolebindings"
      const left = (await kubectl("-n", ns.name, "get", kinds, "-o", "name"))
        .split("\n")
        .filter((line) => line.includes(name))
      need(left.length === 0, `left: ${left.join(", ")}`)
      return `kept ${before.join(", ")}`
    },
  )
}

// ---------------------------------------------------------------- the restricted Pod Security Standard

const restricted = () =>
  podGroup("restricted", async (ns, check) => {
    const levels = ["enforce", "warn"].map((mode) => [`pod-security.kubernetes.io/${mode}`, "restricted"])
    await must("PATCH", `/api/v1/namespaces/${ns.name}`, { metadata: { labels: Object.fromEntries(levels) } })
    await check("where it is enforced, deploy/ and the example are taken without a warning", async () => {
      const files = ["-k", await overlay(ns, { host: false })]
      for (const what of [files, ["-n", ns.name, "-f", "deploy/example-job.yaml"]]) {
        const { code, out, err } = await tryCommand([kubectlProgram, "apply", "--dry-run=server", ...what])
        need(code === 0 && err === "" && out !== "", err || out)
      }
    })
    await check("a pod that breaks it is refused there", async () => {
      const { code, err } = await tryCommand([kubectlProgram, "apply", "--dry-run=server", "-k", await overlay(ns)])
      need(code === 0 && /would violate PodSecurity/.test(err), err)
      const spec = { hostNetwork: true, containers: [{ name: "main", image: "none" }] }
      const { status, body } = await call("POST", `${ns.path("pods")}?dryRun=All`, { metadata: { name: "bad" }, spec })
      need(status === 403 && /violates PodSecurity/.test(body.message ?? ""), `${status} ${body.message}`)
    })
    await check(
      "the operator's pod, unchanged, runs there, and waits for an API server that its network does not reach",
      async () => {
        await deploy(ns, { host: false })
        const pod = await operatorPod(ns)
        const line = await says(ns, "that it waits", [/Jobs in \S+ cannot be watched, next try in/], 60_000)
        need(
          (await podsOf(ns)).every((p) => p.metadata.uid === pod.metadata.uid && restartsOf(p) === 0),
          "the pod was restarted",
        )
        need(!isReady((await podsOf(ns))[0]), "it is ready")
        return `${line.slice(line.indexOf("Jobs in"))}; ${await confinement(pod)}`
      },
    )
    await check("the example's pod runs there, and ends with exit code 3", async () => {
      try {
        await applyExample(ns)
        await ns.failed("flickr-downloader-alice")
        const [pod] = await podsOf(ns, "batch.kubernetes.io/job-name=flickr-downloader-alice")
        need(pod?.status?.containerStatuses?.[0]?.state.terminated?.exitCode === 3, JSON.stringify(pod?.status))
      } finally {
        await removeVolume(ns)
      }
    })
  })

// ---------------------------------------------------------------- bad input

const nothingChosen = () =>
  podGroup("deploy: no Jobs chosen", async (ns, check) => {
    await check(
      "the pod says in one line what is wrong, and starts no oftener than the kubelet's back-off",
      async () => {
        await deploy(ns, { settings: { JOB_SELECTOR: "" } })
        const started = (pod: Pod | undefined) => pod !== undefined && restartsOf(pod) >= 1
        await until("it was started again", async () => started((await podsOf(ns))[0]), 60_000)
        const lines = await logOf(ns)
        const wrong = lines.filter((line) => line.includes("JOB_NAMES and JOB_SELECTOR are both empty: set one"))
        need(wrong.length === 1 && lines.length === 2, lines.join("\n"))
        await Bun.sleep(20_000)
        const restarts = restartsOf((await podsOf(ns))[0]!)
        need(restarts <= 3, `${restarts} restarts`)
        return `${wrong[0]!.trim()}; ${restarts} restarts in 20 s and more`
      },
    )
  })

const noRights = () =>
  podGroup("deploy: no rights", async (ns, check) => {
    const settings = { RESTART_DELAY: "0" }
    await check("without a RoleBinding the pod says what it lacks, stays, and asks seldom", async () => {
      await deploy(ns, { settings, binding: false })
      const pod = await operatorPod(ns)
      const line = await says(ns, "what it lacks", ["ERROR", "Role lacks"])
      await Bun.sleep(30_000)
      need(restartsOf((await podsOf(ns)).find((p) => p.metadata.uid === pod.metadata.uid)!) === 0, "it was restarted")
      const asked = counted ? (await audited()).filter(({ user }) => user === `${ns.name}:${name}`).length : undefined
      need(asked === undefined || asked <= 40, `${asked} calls in 30 s`)
      return `${line.slice(line.indexOf("Role lacks"))} ${asked ?? "not counted"} calls in 30 s`
    })
    await check("once the RoleBinding is there, a failed Job is restarted", async () => {
      await ns.create("jobs", operatorJob({ name: "late" }))
      const old = await ns.failed("late")
      const begun = now()
      await deploy(ns, { settings })
      await ns.another(old, 60_000)
      return `after ${seconds(now() - begun)}`
    })
    await check("a new Job that gets no pod, for a quota: the log says so, and the Job is left alone", async () => {
      const old = await ns.create("jobs", jobThat("sleep 4; exit 3", { name: "podless", labels: chosen }))
      await until("its pod runs", async () => (await podsOf(ns, "job-name=podless"))[0]?.status?.phase === "Running")
      await ns.create("resourcequotas", { metadata: { name: "no-pods" }, spec: { hard: { pods: "0" } } })
      const young = await ns.another(old)
      const begun = now()
      await says(ns, "that there is no pod", ["podless", /no pod/i, "WARNING"])
      const after = now() - begun
      const left = await ns.job("podless")
      need(left?.metadata.uid === young.metadata.uid, "it was restarted")
      const changed = differences(content(young), content(left))
      need(changed.length === 0, `changed: ${changed.join("; ")}`)
      return `after ${seconds(after)}`
    })
  })

const laterNamespace = () =>
  podGroup("deploy: later namespace", async (ns, check) => {
    const later = new Namespace(`${ns.name}-later`)
    try {
      await check("a namespace that does not exist yet: the pod says so, and stays", async () => {
        await deploy(ns, { settings: { RESTART_DELAY: "0", NAMESPACE: later.name } })
        await operatorPod(ns)
        const line = await says(ns, "what it lacks", [later.name, /lacks|exist/])
        return line.slice(line.indexOf("ERROR"))
      })
      await check("once it is there, with the Role and the RoleBinding of rbac.yaml, it is looked after", async () => {
        await kubectl("create", "namespace", later.name)
        const subjects = [{ kind: "ServiceAccount", name, namespace: ns.name }]
        const documents = await rbac()
        const [role, binding] = ["Role", "RoleBinding"].map(
          (kind) => documents.find((document) => document.kind === kind)!,
        )
        await later.create("roles", role!)
        await later.create("rolebindings", { ...binding!, subjects })
        const begun = now()
        await until("it has a ServiceAccount", () => later.find("serviceaccounts", "default"))
        await later.create("jobs", operatorJob({ name: "late" }))
        const old = await later.failed("late")
        await later.another(old, 75_000) // a CHECK_INTERVAL where the Role came between review and list
        return `a Job that failed there is back ${seconds(now() - begun)} after the Role`
      })
    } finally {
      await later.remove()
    }
  })

// ---------------------------------------------------------------- from the Python operator

/** The Role and the Deployment of the Python operator's README. */
const pythonRules = [
  { apiGroups: ["batch"], resources: ["jobs"], verbs: ["get", "list", "create", "delete"] },
  { apiGroups: [""], resources: ["pods"], verbs: ["get", "list", "delete"] },
  { apiGroups: [""], resources: ["pods/log"], verbs: ["get"] },
]
async function pythonShape(ns: Namespace): Promise<void> {
  const metadata = { name: "flickr-operator" }
  const server = new URL(await kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"))
  const env = Object.entries({
    JOB_NAMES: "flickr-downloader-alice,flickr-downloader-bob",
    LOGURU_LEVEL: "DEBUG",
    NAMESPACE: ns.name,
    CHECK_INTERVAL: "5",
    RESTART_DELAY: "5",
    // What this cluster lacks:
    KUBERNETES_SERVICE_HOST: server.hostname,
    KUBERNETES_SERVICE_PORT: server.port,
  }).map(([name, value]) => ({ name, value }))
  const resources = { requests: { cpu: "50m", memory: "64Mi" }, limits: { cpu: "1500m", memory: "128Mi" } }
  const containers = [{ name: "operator", image: await reference(), env, resources }]
  const labels = { app: "flickr-operator", "app.kubernetes.io/name": name }
  const spec = { serviceAccountName: "flickr-operator", hostNetwork: true, containers }
  await ns.create("serviceaccounts", { metadata })
  await ns.create("roles", { metadata, rules: pythonRules })
  await ns.create("rolebindings", {
    metadata,
    roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "Role", name: "flickr-operator" },
    subjects: [{ kind: "ServiceAccount", name: "flickr-operator", namespace: ns.name }],
  })
  await must("POST", `/apis/apps/v1/namespaces/${ns.name}/deployments`, {
    metadata,
    spec: {
      replicas: 1,
      selector: { matchLabels: { app: "flickr-operator" } },
      template: { metadata: { labels }, spec },
    },
  })
}

const migration = () =>
  podGroup("migration", async (ns, check) => {
    const names = ["flickr-downloader-alice", "flickr-downloader-bob"]
    const comeBack = async () => {
      const olds = await Promise.all(names.map((name) => ns.failed(name)))
      const youngs = await Promise.all(olds.map((old) => ns.another(old)))
      const changed = olds.flatMap((old, i) => differences(content(old), content(youngs[i]!)))
      need(changed.length === 0, `changed: ${changed.join("\n")}`)
      const after = olds.map((old, i) => (Date.parse(youngs[i]!.metadata.creationTimestamp) - failedAt(old)!) / 1_000)
      return `${after.join(" s and ")} s after the failure`
    }
    for (const name of names) await ns.create("jobs", failingJob({ name }))
    await check(
      "the Python operator's Deployment and Role with only the image replaced: its Jobs are restarted",
      async () => {
        await pythonShape(ns)
        await operatorPod(ns)
        return comeBack()
      },
    )
    await check("the log says what to add to the Role", async () => {
      const lines = await logOf(ns)
      const at = lines.findIndex((line) => line.includes("Role lacks"))
      const end = lines.findIndex((line, i) => i > at && !line.startsWith("    "))
      const rules = lines.slice(at + 1, end).map((line) => line.trim().split(":")[0]!)
      const had = rightsOf(pythonRules)
      const lacking = rightsOf(await rulesOf()).filter((right) => !had.includes(right))
      need(
        at >= 0 && Bun.deepEquals(rules.toSorted(), lacking.map((right) => right.replace(" /", " ")).toSorted()),
        lines.slice(0, 40).join("\n"),
      )
      return rules.join(", ")
    })
    await check(
      "with the documented command the Role has all that is needed and no more; the Jobs are restarted",
      async () => {
        const [old] = await podsOf(ns)
        await recipe(".github/docs/from-python.md", "patch role", ns)
        await operatorPod(ns, old!)
        const { rules } = (await ns.find("roles", "flickr-operator")) as Thing & { rules: Rule[] }
        need(
          Bun.deepEquals(rightsOf(rules).toSorted(), rightsOf(await rulesOf()).toSorted()),
          "the Role is not the one of rbac.yaml now",
        )
        await says(ns, "that the Role suffices", ["the Role allows everything that is needed"])
        return comeBack()
      },
    )
    await check("to go back: nothing but annotations of ours is left on the Jobs", async () => {
      await kubectl("-n", ns.name, "scale", "deployment", "flickr-operator", "--replicas=0")
      await until("its pod is gone", async () => (await podsOf(ns)).length === 0, 45_000)
      const jobs = await ns.list("jobs")
      need(Bun.deepEquals(jobs.map(({ metadata }) => metadata.name).toSorted(), names), "there are other Jobs")
      const marks = jobs.flatMap(({ metadata }) => Object.keys({ ...metadata.annotations, ...metadata.labels }))
      const ours = [...new Set(marks.filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length)))]
      return ours.join(", ")
    })
  })

// ---------------------------------------------------------------- permissions, as the API server saw them

/** What every ServiceAccount may. */
const everyones = ["create authorization.k8s.io/selfsubjectrulesreviews", "get /version"]

const permissions = () =>
  check("permissions", "by the audit log of all checks, rbac.yaml has no rule too few and none too many", async () => {
    if (!counted) throw new Skip("not counted")
    const asked = await audited()
    const used = new Set(asked.map(({ right }) => right))
    const given = rightsOf(await rulesOf())
    const missing = [...used].filter((right) => !given.includes(right) && !everyones.includes(right))
    const idle = [...given, ...everyones].filter((right) => !used.has(right))
    need(
      missing.length === 0 && idle.length === 0,
      `used but not given: ${missing.join(", ")}; given but not used: ${idle.join(", ")}`,
    )
    const accounts = new Set(asked.map(({ user }) => user))
    return `${given.length} rules, ${asked.length} calls of ${accounts.size} ServiceAccounts`
  })

// ---------------------------------------------------------------- all of them

/**
 * All checks of the image and of deploy/. To be called last: what the audit log has by then is compared with rbac.yaml.
 */
export async function imageChecks(): Promise<void> {
  const only = process.argv[2]
  if (only && !/image|deploy|restricted|migration/.test(only)) return
  await image()
  if (!nodeDir) return
  await Promise.all([lifeCycle(), restricted(), nothingChosen(), noRights(), laterNamespace(), migration()])
  if (!only) await permissions()
}

if (import.meta.main) {
  if (process.argv[2] === "build") {
    for (const platform of platforms) console.log(basename(await build(platform)))
    await rm(work, { recursive: true, force: true })
    process.exit(0)
  }
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.once(signal, () => abandon().finally(() => process.exit(1)))
  await imageChecks().catch((error) => check("image", "it runs to its end", () => Promise.reject(error)))
  await check("end", "the namespaces are gone", () => allGone().then(() => ""))
  process.exit((await close()) ? 0 : 1)
}
