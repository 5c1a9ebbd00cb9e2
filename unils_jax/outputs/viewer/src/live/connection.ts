// The stream: version 1 of the protocol in docs/serving.md.

const HEADER_BYTES = 12;

export interface Ready {
  fps: number;
  window_frames: number;
  lookahead_frames: number;
  expression_basis: string;
}

export interface Events {
  ready(answer: Ready): void;
  motion(first: number, people: number, frames: number, values: Float32Array): void;
  closed(reason: string): void;
}

/** One open stream of two tracks at 16 kHz. */
export class Connection {
  private readonly socket: WebSocket;
  private reason = "";

  constructor(url: string, token: string, smoothed: boolean, events: Events) {
    this.socket = new WebSocket(url, token ? ["unils.v1", `token.${token}`] : ["unils.v1"]);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () =>
      this.socket.send(JSON.stringify({ type: "open", version: 1, people: 2, tracks: 2, smoothed }));
    this.socket.onmessage = ({ data }: MessageEvent<string | ArrayBuffer>) => {
      if (typeof data === "string") {
        const answer = JSON.parse(data) as { type: string; message?: string };
        if (answer.type === "ready") events.ready(answer as unknown as Ready);
        if (answer.type === "error") this.reason = answer.message ?? "";
        return;
      }
      const view = new DataView(data);
      const first = Number(view.getBigUint64(0, true));
      events.motion(first, view.getUint16(8, true), view.getUint16(10, true), new Float32Array(data, HEADER_BYTES));
    };
    this.socket.onclose = ({ code }) => events.closed(this.reason || (code === 1000 ? "" : `connection closed (${code})`));
  }

  /** Sends samples of a track: 0 is the avatar's, 1 the user's. */
  send(track: number, samples: Float32Array): void {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    const message = new DataView(new ArrayBuffer(1 + 2 * samples.length));
    message.setUint8(0, track);
    samples.forEach((value, i) => message.setInt16(1 + 2 * i, Math.max(-1, Math.min(1, value)) * 32767, true));
    this.socket.send(message.buffer);
  }

  close(): void {
    this.socket.close(1000);
  }
}
