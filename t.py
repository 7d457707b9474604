import torch
from featherlight.nn.models import *
from featherlight.recipes.classify.architectures import ImageClassifier
from featherlight.transforms.quantize.tracing import traced, place_of
for net in ["caffe-lenet","resnet20","mobilenet","lenet300","alexnet","lenet5"]:
    side=32 if net not in("caffe-lenet","lenet300","lenet5") else 28
    ch=3 if side==32 else 1
    m=ImageClassifier(network=net,in_channels=ch,num_classes=10,side=side,mean=[.3]*ch,std=[.2]*ch)
    g=traced(m,torch.rand(2,ch,side,side),())
    print(net,[ (n.op,str(n.target)[:30]) for n in g.nodes][:14])
g=traced(m,torch.rand(2,1,28,28),())
for n in g.nodes: print(n.op,n.target,n.args,place_of(n))
