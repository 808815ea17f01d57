"""Appends one record to a log: append.py DESCRIPTORS ENDPOINT VOLUME TEXT, with what `mainstay descriptors` prints."""
import random, sys, threading
import grpc
from google.protobuf import descriptor_pb2, message_factory

with open(sys.argv[1], "rb") as file:
    types = message_factory.GetMessages(descriptor_pb2.FileDescriptorSet.FromString(file.read()).file)
Request, Reply = types["mainstay.v1.ClientRequest"], types["mainstay.v1.ClientReply"]
done = threading.Event()

def requests():
    yield Request(tag=1, open={"volume": sys.argv[3], "session": random.getrandbits(64) or 1, "create": True, "patience_ms": 5000})
    yield Request(tag=2, append={"seq": 1, "record": sys.argv[4].encode()})
    done.wait(30)  # The stream stays open until the answer is there.

volume = grpc.insecure_channel(sys.argv[2]).stream_stream("/mainstay.v1.Client/Volume", Request.SerializeToString, Reply.FromString)
for reply in volume(requests(), timeout=30):
    kind = reply.WhichOneof("body")
    if kind != "opened":  # `not_primary` names the node to ask instead.
        print(kind, getattr(reply, kind))
        done.set()
