// Minutes and thousands, by hand: `bun .dev/bench/streams.ts [silence|cycles|answers]`. What the tests check in small
// numbers: F04, a watch that is silent for 6 minutes keeps its next event; F07, 10,000 watches that we end, and F09,
// 50,000 answers that nobody reads, leave resident memory level.
import { rmSync } from "node:fs"
import type { Cluster } from "../../operator.ts"
import { connected, event, folder, type Handler, job, serve } from "../test/connection_kit.ts"

const never = new AbortController().signal
const mebibytes = () => {
  Bun.gc(true)
  return Math.round(process.memoryUsage().rss / 2 ** 20)
}
const watch = (cluster: Cluster) => cluster.watch("demo", "jobs", { resourceVersion: "1", silenceMs: 3_600_000 }, never)

/**
 * Runs `times` in ten parts and prints the memory after each. True where the second half added less than `limit` MiB.
 */
async function level(
  what: string,
  handle: Handler,
  limit: number,
  times: number,
  once: (cluster: Cluster) => Promise<unknown>,
): Promise<boolean> {
  const server = await serve(handle)
  const cluster = await connected(server)
  const memory: number[] = []
  for (let part = 0; part < 10; part++) {
    for (let n = 0; n < times / 10; n++) await once(cluster)
    server.calls.length = 0
    memory.push(mebibytes())
  }
  console.log(`${what}: MiB resident ${memory.join(" ")}, ${server.sockets.size} sockets open`)
  await server.stop()
  return memory[9]! - memory[4]! < limit
}

const benches: Record<string, () => Promise<boolean>> = {
  async silence() {
    const server = await serve((_, response) => {
      response.flushHeaders()
      setTimeout(() => response.end(event("ADDED", job())), 370_000)
    })
    const seen = await Array.fromAsync(watch(await connected(server)))
    console.log(`F04 after 370 s of silence: ${seen.length} event`)
    return seen.length === 1
  },
  cycles() {
    const line = event("ADDED", job("2", { annotations: { note: "x".repeat(65_536) } }))
    const once = async (cluster: Cluster) => {
      for await (const _ of watch(cluster)) break
    }
    return level("F07 10,000 watches", (_, response) => void response.write(line), 20, 10_000, once)
  },
  answers() {
    const codes = [429, 404, 409]
    let n = 0
    const handle: Handler = (_, response) => void response.writeHead(codes[n++ % 3]!).end("x".repeat(2_048))
    return level("F09 50,000 answers", handle, 20, 50_000, (cluster) =>
      cluster.createJob("demo", job(), {}, never).catch(() => {}),
    )
  },
}
const chosen = process.argv[2] ? [process.argv[2]] : Object.keys(benches)
const results: boolean[] = []
for (const name of chosen) results.push((await benches[name]?.()) ?? false)
rmSync(folder, { recursive: true, force: true })
console.log(results.every(Boolean) ? "all as it should be" : "NOT as it should be")
process.exit(results.every(Boolean) ? 0 : 1)
